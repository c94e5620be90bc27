#include "cpu_target_check.h"

#include "../core/blocks.h"
#include "../cpu/capability.h"
#include "parallel.h"

namespace fused_losses {
namespace {

constexpr int64_t kPositionsPerBlock = 32768;

}  // namespace

double total_weight(const IndexTarget& target, const std::vector<TargetScan>& scans) {
  CompensatedSum weight;
  for (const TargetScan& scan : scans) {
    if (scan.first_invalid >= 0) {
      throw std::out_of_range("Target " + std::to_string(read_index(target, scan.first_invalid)) +
                              " is out of bounds.");
    }
    weight.add(scan.weight);
  }
  return weight.value();
}

double check_targets(const IndexTarget& target, int64_t num_positions) {
  const int64_t num_blocks = blocks_of(num_positions, kPositionsPerBlock);
  std::vector<TargetScan> scans(static_cast<size_t>(num_blocks));
  for_each_block(num_blocks, [&](int64_t block_begin, int64_t block_end) {
    for (int64_t block = block_begin; block < block_end; ++block) {
      const auto [first, end] = range_of_block(block, kPositionsPerBlock, num_positions);
      scans[static_cast<size_t>(block)] = cpu::kernels().scan_targets(target, first, end);
    }
  });
  return total_weight(target, scans);
}

}  // namespace fused_losses
