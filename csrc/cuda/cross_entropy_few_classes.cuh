// Cross-entropy of index targets, smoothed without class weights or not, among up to 32 classes: a thread has a
// position and all of its logits, and waits for no other one.
//
// Bytes an element: its size for the loss, twice that with the gradient. Where the classes of a position are adjacent,
// a block stages its rows, which are adjacent too, through shared memory in packets; where positions are, as in an
// image, adjacent threads read adjacent logits.
#pragma once

#include "cross_entropy_row.cuh"
#include "launch.h"
#include "launch_bounds.h"
#include "packet_window.cuh"

namespace fused_losses::cuda {
namespace {

constexpr int kFewBlockThreads = 128;
constexpr int kMostFewClasses = 32;

// Adjacent elements from one memory to another by the threads of a block, in packets if both begin equally far past an
// aligned address. What is in shared memory is for Reuse::Soon: accesses with a cache hint are for global memory alone.
template <int kMaxClasses, class T>
__device__ __forceinline__ void copy_by_block(T* to, Reuse reuse_to, const T* from, Reuse reuse_from, int count) {
  const int thread = static_cast<int>(threadIdx.x);
  const PacketWindow<T, int> window(from, count);
  if (!window.is_packed(to)) {
#pragma unroll 1
    for (int i = thread; i < count; i += kFewBlockThreads) to[i] = from[i];
    return;
  }
  // Told nothing, nvcc unrolls by 16, and what leads to that costs a row of two classes more than its copy.
  constexpr int kPacketsOfThread = kMaxClasses / kPacketElements<T>;
  [[maybe_unused]] constexpr int kUnroll = kPacketsOfThread < 1 ? 1 : kPacketsOfThread > 4 ? 4 : kPacketsOfThread;
#pragma unroll kUnroll
  for (int i = thread; i < window.num_packets(); i += kFewBlockThreads) {
    store_packet(to + window.first_element(i), window.load(i, reuse_from), reuse_to);
  }
  if (thread < window.num_edges()) to[window.edge_element(thread)] = from[window.edge_element(thread)];
}

// See Note [Launch bounds].
template <class T, int kMaxClasses>
constexpr int few_classes_registers() {
  if (sizeof(T) == 8) return 160;
  return kMaxClasses > 16 || kBlackwell ? 80 : kMaxClasses > 8 ? 72 : 64;
}

// kRows: the classes of a position are adjacent, and so are the rows.
template <class T, int kMaxClasses, bool kRows>
__global__ void __launch_bounds__(kFewBlockThreads,
                                  min_blocks(kFewBlockThreads, few_classes_registers<T, kMaxClasses>()))
    cross_entropy_few_classes_kernel(const __grid_constant__ CrossEntropyParams params,
                                     const __grid_constant__ UniformMass<Accumulation<T>> uniform) {
  using A = Accumulation<T>;
  if (is_prepared<A>(params)) return;
  FUSED_LOSSES_DYNAMIC_SHARED(T, shared);
  // As far past an aligned address as the logits, which a block's first row does not change.
  T* const tile = shared + (kRows ? elements_past_alignment(static_cast<const T*>(params.logits)) : 0);
  const int num_classes = static_cast<int>(params.num_classes);
  const int thread = static_cast<int>(threadIdx.x);
  const bool wants_gradient = params.mode != CrossEntropyMode::Loss;
  const A scale = wants_gradient ? forward_scale<A>(params) : A(0);
  double block_loss = 0;

  for (int64_t first = int64_t(blockIdx.x) * kFewBlockThreads; first < params.num_positions;
       first += int64_t(gridDim.x) * kFewBlockThreads) {
    const int64_t rest = params.num_positions - first;
    const int tile_elements = static_cast<int>(rest < kFewBlockThreads ? rest : kFewBlockThreads) * num_classes;
    if constexpr (kRows) {
      const T* const rows = static_cast<const T*>(params.logits) + first * num_classes;
      copy_by_block<kMaxClasses>(tile, Reuse::Soon, rows, Reuse::Never, tile_elements);
      __syncthreads();
    }
    const int64_t position = first + thread;
    if (position < params.num_positions) {
      const Place place = place_of(position, params.inner_size);
      const T* const first_logit = kRows ? tile + thread * num_classes
                                         : static_cast<const T*>(params.logits) + params.logits_layout.offset(place);
      const int64_t stride = kRows ? 1 : params.logits_layout.class_stride;
      // All classes are asked for before any is looked at: converted at once, a predicate would have to live for each.
      const T* logits = first_logit;
      T raw[kMaxClasses];
#pragma unroll
      for (int c = 0; c < kMaxClasses; ++c) {
        raw[c] = from_accumulation<T>(-kInfinity<A>);
        if (c < num_classes) raw[c] = *logits;
        logits += stride;
      }
      const RowTarget<A> target = read_target<A>(params, position);
      const int target_class = static_cast<int>(target.target_class);

      A x[kMaxClasses];
      RowStatistics<A> statistics;
#pragma unroll
      for (int c = 0; c < kMaxClasses; ++c) {
        x[c] = to_accumulation(raw[c]);
        statistics.max = max_of(statistics.max, x[c]);
      }
      const A shift = finite_shift(statistics.max);
      if (uniform.exists) {
#pragma unroll
        for (int c = 0; c < kMaxClasses; ++c) {
          if (c < num_classes) statistics.mass_times_x += x[c] - shift;
        }
        statistics.mass_times_x *= uniform.spread;
      }
      const A target_logit = target_class >= 0 ? to_accumulation(first_logit[target_class * stride]) : A(0);
      // The target's exponential is not summed: see Note [Confident rows].
      const RowExponential<T> exponential(shift);
#pragma unroll
      for (int c = 0; c < kMaxClasses; ++c) {
        if (c % 4 == 0 && c >= num_classes) break;
        x[c] = exponential(c == target_class ? -kInfinity<A> : x[c]);
        statistics.sum += x[c];
      }
      statistics.sum *= exponential.correction(shift);
      statistics.template add_target<T>(target.target_class, target_logit);
      set_common_mass(params, statistics);
      block_loss += write_row(params, position, statistics, target, target_logit, uniform.exists);

      if (wants_gradient) {
        const RowGradient<T> gradient(statistics, target, scale, uniform.exists);
        const A scaled_mass = uniform.spread * gradient.scale;
        const A at_target = gradient.at_target(target_logit, uniform.spread);
        T* to = kRows ? tile + thread * num_classes
                      : static_cast<T*>(params.gradient) + params.gradient_layout.offset(place);
        const int64_t to_stride = kRows ? 1 : params.gradient_layout.class_stride;
#pragma unroll
        for (int c = 0; c < kMaxClasses; ++c) {
          if (c % 4 == 0 && c >= num_classes) break;
          A value = gradient.of_exponential(x[c], scaled_mass);
          if (!kRows) value = c == target_class ? at_target : value;
          if (c < num_classes) *to = from_accumulation<T>(value);
          to += to_stride;
        }
        // In shared memory a second store costs less than a choice for every class.
        if (kRows && target_class >= 0) tile[thread * num_classes + target_class] = from_accumulation<T>(at_target);
      }
    }
    if constexpr (kRows) {
      __syncthreads();
      if (wants_gradient) {
        T* const rows = static_cast<T*>(params.gradient) + first * num_classes;
        copy_by_block<kMaxClasses>(rows, Reuse::Never, tile, Reuse::Soon, tile_elements);
        __syncthreads();  // the next rows are written there
      }
    }
  }
  write_block_sum<kFewBlockThreads>(block_loss, params.block_losses);
}

template <class T, int kMaxClasses, bool kRows>
int64_t launch_few_classes(const CrossEntropyParams& params, Stream stream) {
  const int64_t blocks = blocks_for(params.num_positions, kFewBlockThreads);
  const int64_t row_bytes = params.num_classes * static_cast<int64_t>(sizeof(T));
  const int64_t tile_bytes = kRows ? kFewBlockThreads * row_bytes + kPacketBytes : 0;
  launch(cross_entropy_few_classes_kernel<T, kMaxClasses, kRows>, {blocks, kFewBlockThreads, tile_bytes}, stream,
         params, UniformMass<Accumulation<T>>(params));
  return blocks;
}

template <class T, bool kRows>
int64_t launch_by_num_classes(const CrossEntropyParams& params, Stream stream) {
  if (params.num_classes <= 4) return launch_few_classes<T, 4, kRows>(params, stream);
  if (params.num_classes <= 8) return launch_few_classes<T, 8, kRows>(params, stream);
  if (params.num_classes <= 16) return launch_few_classes<T, 16, kRows>(params, stream);
  if (params.num_classes <= 24) return launch_few_classes<T, 24, kRows>(params, stream);
  return launch_few_classes<T, kMostFewClasses, kRows>(params, stream);
}

// Whether all rows lie one behind the other.
inline bool is_one_piece(const CrossEntropyParams& params, const ClassLayout& layout) {
  const int64_t classes = params.num_classes;
  const bool within = params.inner_size == 1 || layout.inner_stride == classes;
  const bool between = params.inner_size == params.num_positions || layout.outer_stride == params.inner_size * classes;
  return layout.class_stride == 1 && within && between;
}

// The number of classes alone decides, so that a row has the same bits alone and in a batch. Rows of 64 bytes and more
// that are whole packets would meet in the same banks of shared memory, and can be read as they are.
template <class T>
bool are_few_classes(int64_t num_classes) {
  const int64_t row_bytes = num_classes * static_cast<int64_t>(sizeof(T));
  return num_classes <= kMostFewClasses && (row_bytes < 64 || row_bytes % kPacketBytes != 0);
}

template <class T>
int64_t cross_entropy_few_classes(const CrossEntropyParams& params, Stream stream) {
  const bool staged = is_one_piece(params, params.logits_layout) &&
                      (params.gradient == nullptr || is_one_piece(params, params.gradient_layout));
  return staged ? launch_by_num_classes<T, true>(params, stream) : launch_by_num_classes<T, false>(params, stream);
}

}  // namespace
}  // namespace fused_losses::cuda
