// Cross-entropy of rows with contiguous classes that are swept, not kept: rows with a dense target mass, rows too long
// for registers, and the backward from the statistics of a forward, which reduces nothing and reads every logit once.
//
// Bytes an element: its size for the loss, and the size of a probability target. With the gradient the logits are read
// twice: short rows from the first-level cache, long ones from the second-level cache, which holds the rows that are in
// work at one time (H100: 132 SMs with 4 rows of 100 KB are 53 MB, its cache is 50 MB).
#pragma once

#include "cross_entropy_row.cuh"
#include "launch.h"
#include "launch_bounds.h"
#include "packet_window.cuh"

namespace fused_losses::cuda {
namespace {

template <class T, bool kDense>
struct SweptRow {
  using A = Accumulation<T>;
  int64_t outer;
  int64_t inner;
  const T* logits;
  PacketWindow<T, int64_t> window;
  DenseMass<T, kDense> dense;

  // A row that does not exist has no classes.
  __device__ __forceinline__ SweptRow(const CrossEntropyParams& params, int64_t position, bool exists)
      : outer(params.inner_size == 1 ? position : position / params.inner_size),
        inner(position - outer * params.inner_size),
        logits(static_cast<const T*>(params.logits) + params.logits_layout.offset(outer, inner)),
        window(logits, exists ? params.num_classes : 0),
        dense(params, outer, inner) {}

  // One thread's share: packets thread, thread + kThreads, ...
  template <int kThreads>
  __device__ __forceinline__ RowStatistics<A> statistics(int thread) const {
    constexpr int kElements = kPacketElements<T>;
    constexpr int kInFlight = kDense ? 1 : 4;  // packets of a thread that are asked for before the first is used
    const T outside = from_accumulation<T>(-kInfinity<A>);
    const int64_t packets = window.num_packets();
    RowStatistics<A> result;
    for (int64_t first = thread; first < packets; first += kInFlight * kThreads) {
      Packet<T> x[kInFlight];
      A max = result.max;
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) x[i] = window.template load<true>(first + i * kThreads, outside);
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
#pragma unroll
        for (int k = 0; k < kElements; ++k) max = max_of(max, to_accumulation(x[i].elements[k]));
      }
      result.raise(max);
      const A shift = finite_shift(max);
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int64_t c = window.first_element(first + i * kThreads);
#pragma unroll
        for (int k = 0; k < kElements; ++k) {
          const A shifted = to_accumulation(x[i].elements[k]) - shift;
          result.sum += exp_of_shifted<T>(shifted);
          if constexpr (kDense) {
            if (!window.holds(c + k)) continue;
            const A mass = dense.at(c + k);
            result.mass += mass;
            result.mass_times_x += mass * shifted;
          }
        }
      }
    }
    return result;
  }

  // The gradient may take the logits' place: a thread reads what it writes, and nobody else does.
  template <int kThreads>
  __device__ __forceinline__ void write_gradient(const CrossEntropyParams& params, int thread,
                                                 const RowTarget<A>& target,
                                                 const RowGradient<T, kDense>& gradient) const {
    T* gradients = static_cast<T*>(params.gradient) + params.gradient_layout.offset(outer, inner);
    const int64_t packets = window.num_packets();
    constexpr int kInFlight = kDense ? 1 : 4;
    for (int64_t first = thread; first < packets; first += kInFlight * kThreads) {
      Packet<T> x[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) x[i] = window.template load<false>(first + i * kThreads, T{});
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int64_t c = window.first_element(first + i * kThreads);
        const int64_t target_element = target.target_class < 0 ? -1 : target.target_class - c;
#pragma unroll
        for (int k = 0; k < kPacketElements<T>; ++k) {
          const A mass = kDense && window.holds(c + k) ? dense.at(c + k) : A(0);
          x[i].elements[k] = gradient.at(to_accumulation(x[i].elements[k]), k == target_element, mass);
        }
        window.store(first + i * kThreads, x[i], gradients);
      }
    }
  }
};

template <int kThreads>
constexpr int kSweepBlockThreads = kThreads > 128 ? kThreads : 128;

// See Note [Launch bounds].
template <class T, int kThreads, bool kDense, bool kBackward>
constexpr int sweep_registers() {
  if (kThreads <= 128) return sizeof(T) == 4 ? 80 : sizeof(T) == 2 && !kDense ? 96 : 128;
  const bool is_small = kDense ? sizeof(T) <= 4 : sizeof(T) == 4 && kBackward;
  return is_small && !kBlackwell ? 64 : 128;
}

// kThreads share a row: some lanes of a warp, or a block.
template <class T, int kThreads, bool kDense>
__global__ void __launch_bounds__(kSweepBlockThreads<kThreads>,
                                  min_blocks(kSweepBlockThreads<kThreads>,
                                             sweep_registers<T, kThreads, kDense, false>()))
    cross_entropy_swept_rows_kernel(const __grid_constant__ CrossEntropyParams params) {
  using A = Accumulation<T>;
  constexpr int kRowsPerBlock = kSweepBlockThreads<kThreads> / kThreads;
  if (is_scaled_already<A>(params)) return;
  const int thread = static_cast<int>(threadIdx.x) % kThreads;
  const int row_in_block = static_cast<int>(threadIdx.x) / kThreads;
  double block_loss = 0;
  // All threads go round equally often: the reductions need every lane.
  for (int64_t first = int64_t(blockIdx.x) * kRowsPerBlock; first < params.num_positions;
       first += int64_t(gridDim.x) * kRowsPerBlock) {
    const int64_t position = first + row_in_block;
    const bool exists = position < params.num_positions;
    const SweptRow<T, kDense> row(params, position, exists);
    RowStatistics<A> statistics = merge_group<kThreads, kDense>(row.template statistics<kThreads>(thread));
    if (!exists) continue;
    const RowTarget<A> target = read_target<A>(params, position);
    set_common_mass(params, statistics);
    if (thread == 0) {
      const A target_logit = target.target_class >= 0 ? to_accumulation(row.logits[target.target_class]) : A(0);
      const A loss = row_loss(statistics, target, target_logit, kDense);
      block_loss += static_cast<double>(loss);
      write_row(params, position, statistics, loss);
    }
    if (params.mode == CrossEntropyMode::Loss) continue;
    const RowGradient<T, kDense> gradient(statistics, target, row_scale<A>(params, position));
    row.template write_gradient<kThreads>(params, thread, target, gradient);
  }
  const double total = sum_of_block<kSweepBlockThreads<kThreads>>(block_loss);
  if (threadIdx.x == 0 && params.block_losses != nullptr) params.block_losses[blockIdx.x] = total;
}

template <class T, int kThreads, bool kDense>
__global__ void __launch_bounds__(kSweepBlockThreads<kThreads>,
                                  min_blocks(kSweepBlockThreads<kThreads>,
                                             sweep_registers<T, kThreads, kDense, true>()))
    cross_entropy_rows_backward_kernel(const __grid_constant__ CrossEntropyParams params) {
  using A = Accumulation<T>;
  constexpr int kRowsPerBlock = kSweepBlockThreads<kThreads> / kThreads;
  const int thread = static_cast<int>(threadIdx.x) % kThreads;
  const int row_in_block = static_cast<int>(threadIdx.x) / kThreads;
  for (int64_t position = int64_t(blockIdx.x) * kRowsPerBlock + row_in_block; position < params.num_positions;
       position += int64_t(gridDim.x) * kRowsPerBlock) {
    const SweptRow<T, kDense> row(params, position, true);
    const RowTarget<A> target = read_target<A>(params, position);
    const RowGradient<T, kDense> gradient(read_row<A>(params, position), target, row_scale<A>(params, position));
    row.template write_gradient<kThreads>(params, thread, target, gradient);
  }
}

template <class T, int kThreads, bool kDense>
int64_t launch_swept_rows(const CrossEntropyParams& params, Stream stream) {
  constexpr int kBlockThreads = kSweepBlockThreads<kThreads>;
  const int64_t blocks = blocks_for(params.num_positions, kBlockThreads / kThreads);
  if (params.mode == CrossEntropyMode::Backward) {
    launch(cross_entropy_rows_backward_kernel<T, kThreads, kDense>, blocks, kBlockThreads, stream, params);
  } else {
    launch(cross_entropy_swept_rows_kernel<T, kThreads, kDense>, blocks, kBlockThreads, stream, params);
  }
  return blocks;
}

template <class T, bool kDense>
int64_t cross_entropy_swept_rows(const CrossEntropyParams& params, Stream stream) {
  const int64_t packets = max_packets<T>(params.num_classes);
  if (packets <= 8) return launch_swept_rows<T, 4, kDense>(params, stream);
  if (packets <= 256) return launch_swept_rows<T, 32, kDense>(params, stream);
  return launch_swept_rows<T, 512, kDense>(params, stream);
}

}  // namespace
}  // namespace fused_losses::cuda
