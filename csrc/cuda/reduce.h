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
