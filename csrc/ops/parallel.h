// Blocks of work over torch's thread pool. Blocks have a size that depends on the problem alone, and their sums are
// added in block order, so that no result depends on the number of threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <vector>

#include "../core/compensated_sum.h"

namespace fused_losses {

inline int64_t blocks_of(int64_t count, int64_t per_block) { return (count + per_block - 1) / per_block; }

// work(block_begin, block_end) must not throw: an exception does not survive the C boundary of the thread pool.
// No thread is woken for fewer than `per_thread` blocks.
template <class Work>
void for_each_block(int64_t num_blocks, const Work& work, int64_t per_thread = 1) {
  if (num_blocks <= per_thread) {
    if (num_blocks > 0) work(0, num_blocks);
  } else {
    torch::stable::parallel_for(0, num_blocks, per_thread, work);
  }
}

inline double ordered_sum(const std::vector<double>& values) {
  CompensatedSum total;
  for (const double value : values) total.add(value);
  return total.value();
}

}  // namespace fused_losses
