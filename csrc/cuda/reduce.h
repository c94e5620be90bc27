// Reductions over the threads of a group. The order of the additions is fixed by the threads' numbers: results are the
// same to the bit in every run.
#pragma once

#include "device.h"
#include "element.h"

namespace fused_losses::cuda {
namespace {

constexpr int kWarpThreads = 32;
constexpr unsigned kWholeWarp = 0xffffffff;

// Groups of kThreads adjacent lanes; every lane of the warp takes part, every lane gets its group's result.
template <int kThreads, class A>
__device__ __forceinline__ A sum_of_lanes(A value) {
  static_assert(kThreads <= kWarpThreads && (kThreads & (kThreads - 1)) == 0);
#pragma unroll
  for (int distance = kThreads / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, distance);
  }
  return value;
}
template <int kThreads, class A>
__device__ __forceinline__ A max_of_lanes(A value) {
  static_assert(kThreads <= kWarpThreads && (kThreads & (kThreads - 1)) == 0);
#pragma unroll
  for (int distance = kThreads / 2; distance > 0; distance /= 2) {
    value = max_of(value, __shfl_xor_sync(kWholeWarp, value, distance));
  }
  return value;
}

// The kThreads adjacent threads that share a row are a group: lanes of one warp, or a whole block, whose warps count in
// their order. Every thread gets the result. Two calls of one of these functions must have a call of another one
// between them: its barrier keeps a fast warp from overwriting the shared memory that a slow one still reads.
template <int kThreads, class A>
__device__ __forceinline__ A max_of_group(A value) {
  constexpr int kLanes = kThreads < kWarpThreads ? kThreads : kWarpThreads;
  value = max_of_lanes<kLanes>(value);
  if constexpr (kThreads > kWarpThreads) {
    constexpr int kWarps = kThreads / kWarpThreads;
    FUSED_LOSSES_SHARED(A, warp_maxima, kWarps);
    const int thread = static_cast<int>(threadIdx.x);
    if (thread % kWarpThreads == 0) warp_maxima[thread / kWarpThreads] = value;
    __syncthreads();
    value = max_of_lanes<kWarps>(warp_maxima[thread % kWarps]);
  }
  return value;
}
// The least of the group's numbers; for the calls' order see max_of_group.
template <int kThreads>
__device__ __forceinline__ int64_t min_of_group(int64_t value) {
  const auto lesser = [](int64_t a, int64_t b) { return a < b ? a : b; };
#pragma unroll
  for (int distance = kWarpThreads / 2; distance > 0; distance /= 2) {
    value = lesser(value, __shfl_xor_sync(kWholeWarp, value, distance));
  }
  if constexpr (kThreads > kWarpThreads) {
    constexpr int kWarps = kThreads / kWarpThreads;
    FUSED_LOSSES_SHARED(int64_t, warp_minima, kWarps);
    const int thread = static_cast<int>(threadIdx.x);
    if (thread % kWarpThreads == 0) warp_minima[thread / kWarpThreads] = value;
    __syncthreads();
    value = warp_minima[0];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) value = lesser(value, warp_minima[warp]);
  }
  return value;
}
template <int kThreads, int kCount, class A>
__device__ __forceinline__ void sum_over_group(A (&values)[kCount]) {
  constexpr int kLanes = kThreads < kWarpThreads ? kThreads : kWarpThreads;
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = sum_of_lanes<kLanes>(values[i]);
  if constexpr (kThreads > kWarpThreads) {
    constexpr int kWarps = kThreads / kWarpThreads;
    FUSED_LOSSES_SHARED(A, warp_sums, kCount * kWarps);
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (thread % kWarpThreads == 0) warp_sums[i * kWarps + thread / kWarpThreads] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = sum_of_lanes<kWarps>(warp_sums[i * kWarps + thread % kWarps]);
  }
}

// What a thread of the group reads before is not what one of them writes after. Every lane of the warp takes part.
template <int kThreads>
__device__ __forceinline__ void wait_for_group() {
  if constexpr (kThreads > kWarpThreads) {
    __syncthreads();
  } else {
    __syncwarp(kWholeWarp);
  }
}

// The sum over a block, in thread 0.
template <int kBlockThreads>
__device__ __forceinline__ double sum_of_block(double value) {
  constexpr int kWarps = kBlockThreads / kWarpThreads;
  FUSED_LOSSES_SHARED(double, warp_sums, kWarps);
  const int thread = static_cast<int>(threadIdx.x);
  value = sum_of_lanes<kWarpThreads>(value);
  if (thread % kWarpThreads == 0) warp_sums[thread / kWarpThreads] = value;
  __syncthreads();
  double total = 0;
  if (thread < kWarpThreads) total = sum_of_lanes<kWarpThreads>(thread < kWarps ? warp_sums[thread] : 0.0);
  __syncthreads();  // whoever comes next may write warp_sums
  return total;
}

// Leaves the sum over the block at its number, where it is asked for.
template <int kBlockThreads>
__device__ __forceinline__ void write_block_sum(double value, double* block_sums) {
  const double total = sum_of_block<kBlockThreads>(value);
  if (threadIdx.x == 0 && block_sums != nullptr) block_sums[blockIdx.x] = total;
}

}  // namespace
}  // namespace fused_losses::cuda
