// Cross-entropy of (N, C, d1, ...) with a contiguous inner axis: adjacent threads take adjacent positions, each of them
// goes through the classes of its own. No thread waits for another.
//
// Bytes an element: its size for the loss; with the gradient the logits are read twice, the second time from a cache
// where the classes of the resident positions fit in one (21 classes: 2048 threads an SM x 16 bytes x 21 = 688 KB, the
// second-level cache of an H100 has 390 KB for each SM).
#pragma once

#include "cross_entropy_row.cuh"
#include "launch.h"
#include "launch_bounds.h"

namespace fused_losses::cuda {
namespace {

constexpr int kInnerBlockThreads = 128;
template <bool kDense>
constexpr int kClassesInFlight = kDense ? 1 : 4;

// kPositions adjacent positions of one thread: a packet, or one where the tensors are not aligned for packets.
template <class T, int kPositions>
struct PositionGroup {
  using A = Accumulation<T>;
  T elements[kPositions];

  // `count` positions exist; `outside` fills the others.
  static __device__ __forceinline__ PositionGroup load(const T* address, int count, T outside) {
    PositionGroup result;
    if constexpr (kPositions == kPacketElements<T>) {
      if (count >= kPositions) {
        const Packet<T> packet = load_packet(address, Reuse::Soon);
#pragma unroll
        for (int k = 0; k < kPositions; ++k) result.elements[k] = packet.elements[k];
        return result;
      }
    }
#pragma unroll
    for (int k = 0; k < kPositions; ++k) result.elements[k] = k < count ? address[k] : outside;
    return result;
  }
  __device__ __forceinline__ void store(T* address, int count) const {
    if constexpr (kPositions == kPacketElements<T>) {
      if (count >= kPositions) {
        Packet<T> packet;
#pragma unroll
        for (int k = 0; k < kPositions; ++k) packet.elements[k] = elements[k];
        return store_packet(address, packet);
      }
    }
#pragma unroll
    for (int k = 0; k < kPositions; ++k) {
      if (k < count) address[k] = elements[k];
    }
  }
};

// See Note [Launch bounds].
template <class T, int kPositions, bool kDense>
constexpr int inner_registers() {
  if (kPositions == 1 && sizeof(T) <= 4) return kDense ? 80 : 64;
  if (kPositions == 1) return kDense ? 128 : 80;
  switch (sizeof(T)) {
    case 2:
      return kDense && !kBlackwell ? 255 : 168;
    case 4:
      return kDense ? 128 : 96;
    default:
      return kDense ? 168 : 128;
  }
}

template <class T, int kPositions, bool kDense>
__global__ void __launch_bounds__(kInnerBlockThreads,
                                  min_blocks(kInnerBlockThreads, inner_registers<T, kPositions, kDense>()))
    cross_entropy_inner_kernel(const __grid_constant__ CrossEntropyParams params) {
  using A = Accumulation<T>;
  using Group = PositionGroup<T, kPositions>;
  if (is_scaled_already<A>(params)) return;
  // One thread sums all classes: the large sum is rounded once for those in flight. Eight positions lack the registers.
  constexpr bool kSumsInFlight = kPositions <= 4;
  const T outside = from_accumulation<T>(-kInfinity<A>);
  const int64_t groups_per_outer = (params.inner_size + kPositions - 1) / kPositions;
  const int64_t num_groups = params.num_positions / params.inner_size * groups_per_outer;
  const int64_t logits_stride = params.logits_layout.class_stride;
  const int64_t gradient_stride = params.gradient_layout.class_stride;
  double block_loss = 0;

  for (int64_t group = int64_t(blockIdx.x) * kInnerBlockThreads + threadIdx.x; group < num_groups;
       group += int64_t(gridDim.x) * kInnerBlockThreads) {
    const int64_t outer = group / groups_per_outer;
    const int64_t inner = (group - outer * groups_per_outer) * kPositions;
    const int64_t position = outer * params.inner_size + inner;
    const int64_t rest = params.inner_size - inner;
    const int count = rest < kPositions ? static_cast<int>(rest) : kPositions;
    const T* logits = static_cast<const T*>(params.logits) + params.logits_layout.offset(outer, inner);

    RowStatistics<A> statistics[kPositions];
    RowTarget<A> targets[kPositions];
#pragma unroll
    for (int k = 0; k < kPositions; ++k) {
      if (k < count) targets[k] = read_target<A>(params, position + k);
    }

    if (params.mode == CrossEntropyMode::Backward) {
#pragma unroll
      for (int k = 0; k < kPositions; ++k) {
        if (k < count) statistics[k] = read_row<A>(params, position + k);
      }
    } else {
      for (int64_t first = 0; first < params.num_classes; first += kClassesInFlight<kDense>) {
        Group x[kClassesInFlight<kDense>];
#pragma unroll
        for (int i = 0; i < kClassesInFlight<kDense>; ++i) {
          const bool exists = first + i < params.num_classes;
          x[i] = Group::load(logits + (exists ? first + i : 0) * logits_stride, exists ? count : 0, outside);
        }
#pragma unroll
        for (int k = 0; k < kPositions; ++k) {
          A max = statistics[k].max;
#pragma unroll
          for (int i = 0; i < kClassesInFlight<kDense>; ++i) max = max_of(max, to_accumulation(x[i].elements[k]));
          statistics[k].raise(max);
          const A shift = finite_shift(max);
          const DenseMass<T, kDense> dense(params, {outer, inner + k});
          const int64_t target_element = targets[k].target_class - first;  // not summed: see Note [Confident rows]
          A sum = kSumsInFlight ? A(0) : statistics[k].sum;
#pragma unroll
          for (int i = 0; i < kClassesInFlight<kDense>; ++i) {
            const A shifted = to_accumulation(x[i].elements[k]) - shift;
            if (i != target_element) sum += exp_of_shifted<T>(shifted);
            if constexpr (kDense) {
              if (first + i >= params.num_classes || k >= count) continue;
              const A mass = dense.at(first + i);
              statistics[k].mass += mass;
              statistics[k].mass_times_x += mass * shifted;
            }
          }
          statistics[k].sum = kSumsInFlight ? statistics[k].sum + sum : sum;
        }
      }
#pragma unroll
      for (int k = 0; k < kPositions; ++k) {
        if (k >= count) continue;
        set_common_mass(params, statistics[k]);
        A target_logit = 0;
        if (targets[k].target_class >= 0) {
          target_logit = to_accumulation(logits[k + targets[k].target_class * logits_stride]);
        }
        statistics[k].template add_target<T>(targets[k].target_class, target_logit);
        const A loss = row_loss(statistics[k], targets[k], target_logit, kDense);
        block_loss += static_cast<double>(loss);
        write_row(params, position + k, statistics[k], loss);
      }
      if (params.mode == CrossEntropyMode::Loss) continue;
    }

    // The gradient may take the logits' place: a thread reads what it writes, and nobody else does.
    T* gradients = static_cast<T*>(params.gradient) + params.gradient_layout.offset(outer, inner);
    A scales[kPositions];
#pragma unroll
    for (int k = 0; k < kPositions; ++k) scales[k] = k < count ? row_scale<A>(params, position + k) : A(0);
#pragma unroll 2
    for (int64_t c = 0; c < params.num_classes; ++c) {
      const Group x = Group::load(logits + c * logits_stride, count, T{});
      Group values;
#pragma unroll
      for (int k = 0; k < kPositions; ++k) {
        const RowGradient<T, kDense> gradient(statistics[k], targets[k], scales[k]);
        const A mass = kDense && k < count ? DenseMass<T, kDense>(params, {outer, inner + k}).at(c) : A(0);
        values.elements[k] = gradient.at(to_accumulation(x.elements[k]), c == targets[k].target_class, mass);
      }
      values.store(gradients + c * gradient_stride, count);
    }
  }
  write_block_sum<kInnerBlockThreads>(block_loss, params.block_losses);
}

template <class T>
bool packets_fit(const void* data, const ClassLayout& layout) {
  constexpr int kElements = kPacketElements<T>;
  return reinterpret_cast<uintptr_t>(data) % kPacketBytes == 0 && layout.class_stride % kElements == 0 &&
         layout.outer_stride % kElements == 0;
}

template <class T, int kPositions>
int64_t launch_inner(const CrossEntropyParams& params, Stream stream) {
  const int64_t groups_per_outer = (params.inner_size + kPositions - 1) / kPositions;
  const int64_t blocks = blocks_for(params.num_positions / params.inner_size * groups_per_outer, kInnerBlockThreads);
  const bool dense = params.target_kind != TargetKind::Index;
  launch(dense ? cross_entropy_inner_kernel<T, kPositions, true> : cross_entropy_inner_kernel<T, kPositions, false>,
         {blocks, kInnerBlockThreads}, stream, params);
  return blocks;
}

template <class T>
int64_t cross_entropy_inner(const CrossEntropyParams& params, Stream stream) {
  const bool packed = packets_fit<T>(params.logits, params.logits_layout) &&
                      (params.gradient == nullptr || packets_fit<T>(params.gradient, params.gradient_layout));
  return packed ? launch_inner<T, kPacketElements<T>>(params, stream) : launch_inner<T, 1>(params, stream);
}

}  // namespace
}  // namespace fused_losses::cuda
