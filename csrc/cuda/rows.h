// How groups of threads go through rows.
#pragma once

#include "device.h"

namespace fused_losses::cuda {
namespace {

// Calls body(position, exists, thread) for every row of the groups of kThreads adjacent threads; `thread` counts within
// the group. All threads go round equally often, as reductions need every lane: past the last row nothing exists.
template <int kThreads, int kBlockThreads, class Body>
__device__ __forceinline__ void for_each_row(int64_t num_rows, const Body& body) {
  constexpr int kRowsPerBlock = kBlockThreads / kThreads;
  const int thread = static_cast<int>(threadIdx.x) % kThreads;
  const int row_in_block = kRowsPerBlock > 1 ? static_cast<int>(threadIdx.x) / kThreads : 0;
  for (int64_t first = int64_t(blockIdx.x) * kRowsPerBlock; first < num_rows;
       first += int64_t(gridDim.x) * kRowsPerBlock) {
    const int64_t position = first + row_in_block;
    body(position, kRowsPerBlock == 1 || position < num_rows, thread);
  }
}

}  // namespace
}  // namespace fused_losses::cuda
