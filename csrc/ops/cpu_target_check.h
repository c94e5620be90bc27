// Class-index targets in the memory of the CPU: every index is checked before a kernel trusts it.
#pragma once

#include <vector>

#include "index_target.h"

namespace fused_losses {

// The sum of the targets' weights, from the scans of all blocks in order. Throws std::out_of_range (IndexError) with
// torch's words for the first bad index.
double total_weight(const IndexTarget& target, const std::vector<TargetScan>& scans);

// The same with a pass of its own over the targets.
double check_targets(const IndexTarget& target, int64_t num_positions);

}  // namespace fused_losses
