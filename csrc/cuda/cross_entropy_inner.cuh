// Cross-entropy of (N, C, d1, ...) with a contiguous inner axis: adjacent threads take adjacent positions, each of them
// goes through the classes of its own. No thread waits for another.
//
// Bytes an element: its size for the loss; with the gradient the logits are read twice, the second time from a cache
// where the classes of the resident positions fit in one (21 classes: 1024 threads an SM x 8 bytes x 21 = 172 KB, the
// second-level cache of an H100 has 390 KB for each SM). 8 bytes a thread, not 16: an image has few positions for a
// GPU.
#pragma once

#include "cross_entropy_row.cuh"
#include "launch.h"
#include "launch_bounds.h"

namespace fused_losses::cuda {
namespace {

constexpr int kInnerBlockThreads = 128;
template <bool kDense, class Terms>
constexpr int kClassesInFlight = kDense ? 2 : (Terms::kAny ? 4 : 8);
constexpr int kGradientClassesInFlight = 4;
template <class T>
constexpr int kChunkPositions = 8 / static_cast<int>(sizeof(T));

// What kPositions adjacent positions of one thread have in a class: a chunk, or one element where the tensors are not
// aligned for chunks. It is converted where it is used, so that the loads of several classes wait for none of them.
template <class T, int kPositions>
class PositionGroup {
 public:
  using A = Accumulation<T>;

  // `count` positions exist; the others are -inf.
  static __device__ __forceinline__ PositionGroup load(const T* address, int count) {
    PositionGroup result;
    if (count >= kPositions) {
      result.chunk_ = load_chunk<T, kPositions>(address, Reuse::Soon);
      return result;
    }
    A values[kPositions];
#pragma unroll
    for (int k = 0; k < kPositions; ++k) values[k] = k < count ? to_accumulation(address[k]) : -kInfinity<A>;
    result.chunk_ = Chunk<T, kPositions>::of(values);
    return result;
  }
  static __device__ __forceinline__ void store(T* address, const A (&values)[kPositions], int count) {
    if (count >= kPositions) return store_chunk(address, Chunk<T, kPositions>::of(values));
#pragma unroll
    for (int k = 0; k < kPositions; ++k) {
      if (k < count) address[k] = from_accumulation<T>(values[k]);
    }
  }

  __device__ __forceinline__ A at(int k) const { return chunk_.at(k); }

 private:
  Chunk<T, kPositions> chunk_;
};

template <class T>
class PositionGroup<T, 1> {
 public:
  using A = Accumulation<T>;

  static __device__ __forceinline__ PositionGroup load(const T* address, int count) {
    PositionGroup result;
    result.element_ = count > 0 ? *address : from_accumulation<T>(-kInfinity<A>);
    return result;
  }
  static __device__ __forceinline__ void store(T* address, const A (&values)[1], int count) {
    if (count > 0) *address = from_accumulation<T>(values[0]);
  }

  __device__ __forceinline__ A at(int) const { return to_accumulation(element_); }

 private:
  T element_;
};

// See Note [Launch bounds].
template <class T, int kPositions, bool kDense, class Terms>
constexpr int inner_registers() {
  if (Terms::kAny || kDense || sizeof(T) == 8 || kBlackwell) return 128;
  return kPositions == 4 ? 96 : kPositions == 2 ? 80 : 64;
}

template <class T, int kPositions, bool kDense, class Terms>
__global__ void __launch_bounds__(kInnerBlockThreads,
                                  min_blocks(kInnerBlockThreads, inner_registers<T, kPositions, kDense, Terms>()))
    cross_entropy_inner_kernel(const __grid_constant__ CrossEntropyParams params, const __grid_constant__ Terms terms) {
  using A = Accumulation<T>;
  using Group = PositionGroup<T, kPositions>;
  if (is_prepared<A>(params)) return;
  // One thread sums all classes, so that what an addition rounds away is kept (Kahan 1965); sums of 16-bit logits need
  // it not.
  constexpr bool kCompensates = sizeof(T) > 2;
  constexpr int kInFlight = kClassesInFlight<kDense, Terms>;
  const int num_classes = static_cast<int>(params.num_classes);
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
    const auto target_unit = [&](int k) {
      const int64_t c = targets[k].target_class;
      return c >= 0 ? terms.unit(to_accumulation(logits[k + c * logits_stride])) : A(0);
    };
#pragma unroll
    for (int k = 0; k < kPositions; ++k) {
      if (k < count) targets[k] = read_target<A>(params, position + k);
    }

    const bool is_backward = params.mode == CrossEntropyMode::Backward;
    if (is_backward) {
#pragma unroll
      for (int k = 0; k < kPositions; ++k) {
        if (k < count) statistics[k] = read_row<A>(params, position + k);
      }
    } else {
      A lost[kPositions] = {};
      for (int first = 0; first < num_classes; first += kInFlight) {
        Group x[kInFlight];
#pragma unroll
        for (int i = 0; i < kInFlight; ++i) {
          const bool exists = first + i < num_classes;
          x[i] = Group::load(logits + (exists ? first + i : 0) * logits_stride, exists ? count : 0);
        }
#pragma unroll
        for (int k = 0; k < kPositions; ++k) {
          A units[kInFlight];
          A max = statistics[k].max;
#pragma unroll
          for (int i = 0; i < kInFlight; ++i) {
            units[i] = terms.unit_or_none(x[i].at(k), first + i < num_classes);
            max = max_of(max, units[i]);
          }
          lost[k] *= statistics[k].raise(max, terms);
          const A shift = finite_shift(max);
          // Not summed: see Note [Confident rows].
          const int target_element = static_cast<int>(targets[k].target_class) - first;
          const UnitExponential<T, Terms> exponential(shift, terms);
          A sum = kCompensates ? -lost[k] : A(0);
#pragma unroll
          for (int i = 0; i < kInFlight; ++i) {
            const A shifted = units[i] - shift;
            if (i != target_element) sum += exponential(units[i]);
            if constexpr (kDense) {
              if (first + i >= num_classes || k >= count) continue;
              const A mass = DenseMass<T>(params, {outer, inner + k}).at(first + i);
              statistics[k].mass += mass;
              statistics[k].mass_times_x += mass * shifted;
            }
          }
          if constexpr (!kCompensates) {
            sum = statistics[k].sum + sum * exponential.correction(shift);
          } else {
            const A total = statistics[k].sum + sum;
            lost[k] = (total - statistics[k].sum) - sum;
            sum = total;
          }
          statistics[k].sum = sum;
        }
      }
#pragma unroll
      for (int k = 0; k < kPositions; ++k) {
        if (k >= count) continue;
        set_common_mass(params, statistics[k]);
        statistics[k].mass_times_x = terms.to_x(statistics[k].mass_times_x);
        const A of_target = target_unit(k);
        statistics[k].template add_target<T>(targets[k].target_class, of_target, terms);
        block_loss += write_row(params, position + k, statistics[k], targets[k], of_target, kDense, terms);
      }
      if (params.mode == CrossEntropyMode::Loss) continue;
    }

    // The gradient may take the logits' place: a thread reads what it writes, and nobody else does.
    T* gradients = static_cast<T*>(params.gradient) + params.gradient_layout.offset(outer, inner);
    RowGradient<T, Terms> gradient[kPositions];
    A at_target[kPositions];  // where it does not depend on a dense mass
#pragma unroll
    for (int k = 0; k < kPositions; ++k) {
      const A scale = k >= count    ? A(0)
                      : is_backward ? backward_scale<A>(params, position + k)
                                    : forward_scale<A>(params);
      const A of_target = Terms::kAny && k < count ? target_unit(k) : A(0);
      gradient[k] = {statistics[k], targets[k], of_target, scale, kDense, terms};
      if constexpr (!kDense) {
        at_target[k] = gradient[k].at_target(Terms::kAny ? of_target : gradient[k].shift, A(0));
        at_target[k] = terms.of_logit(at_target[k], of_target);
      }
    }
    for (int first = 0; first < num_classes; first += kGradientClassesInFlight) {
      Group x[kGradientClassesInFlight];
#pragma unroll
      for (int i = 0; i < kGradientClassesInFlight; ++i) {
        if (first + i < num_classes) x[i] = Group::load(logits + (first + i) * logits_stride, count);
      }
#pragma unroll
      for (int i = 0; i < kGradientClassesInFlight; ++i) {
        const int c = first + i;
        if (c >= num_classes) continue;
        A values[kPositions];
#pragma unroll
        for (int k = 0; k < kPositions; ++k) {
          const A unit = terms.unit(x[i].at(k));
          const bool is_target = c == static_cast<int>(targets[k].target_class);
          if constexpr (kDense) {
            const A mass = k < count ? DenseMass<T>(params, {outer, inner + k}).at(c) : A(0);
            const A value =
                is_target ? gradient[k].at_target(unit, mass) : gradient[k].at(unit, mass * gradient[k].scale);
            values[k] = terms.of_logit(value, unit);
          } else {
            values[k] = is_target ? at_target[k] : terms.of_logit(gradient[k].at(unit, A(0)), unit);
          }
        }
        Group::store(gradients + c * gradient_stride, values, count);
      }
    }
  }
  write_block_sum<kInnerBlockThreads>(block_loss, params.block_losses);
}

template <class T>
bool chunks_fit(const void* data, const ClassLayout& layout) {
  constexpr int kElements = kChunkPositions<T>;
  return reinterpret_cast<uintptr_t>(data) % (kElements * sizeof(T)) == 0 && layout.class_stride % kElements == 0 &&
         layout.outer_stride % kElements == 0;
}

template <class T, int kPositions, class Terms>
int64_t launch_inner(const CrossEntropyParams& params, Stream stream, const Terms& terms) {
  const int64_t groups_per_outer = (params.inner_size + kPositions - 1) / kPositions;
  const int64_t blocks = blocks_for(params.num_positions / params.inner_size * groups_per_outer, kInnerBlockThreads);
  const bool dense = params.target_kind != TargetKind::Index;
  launch(dense ? cross_entropy_inner_kernel<T, kPositions, true, Terms>
               : cross_entropy_inner_kernel<T, kPositions, false, Terms>,
         {blocks, kInnerBlockThreads}, stream, params, terms);
  return blocks;
}

template <class T, class Terms>
int64_t cross_entropy_inner(const CrossEntropyParams& params, Stream stream, const Terms& terms) {
  const bool chunked = chunks_fit<T>(params.logits, params.logits_layout) &&
                       (params.gradient == nullptr || chunks_fit<T>(params.gradient, params.gradient_layout));
  return chunked ? launch_inner<T, kChunkPositions<T>>(params, stream, terms)
                 : launch_inner<T, 1>(params, stream, terms);
}

}  // namespace
}  // namespace fused_losses::cuda
