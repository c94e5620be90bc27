// Blocks of a fixed size, of which kernels are given ranges.
#pragma once

#include <cstdint>

namespace fused_losses {

// [first, end)
struct Range {
  int64_t first;
  int64_t end;
};

namespace {

// What the blocks [block_begin, block_end) hold of `total`; the last block may be shorter than the others.
constexpr Range range_of_blocks(int64_t block_begin, int64_t block_end, int64_t per_block, int64_t total) {
  const int64_t end = block_end * per_block;
  return {block_begin * per_block, end < total ? end : total};
}

constexpr Range range_of_block(int64_t block, int64_t per_block, int64_t total) {
  return range_of_blocks(block, block + 1, per_block, total);
}

}  // namespace
}  // namespace fused_losses
