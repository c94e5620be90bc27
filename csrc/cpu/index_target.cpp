// The checking pass over class indices. Compiled once per instruction set.
#include "index_target.h"

#include "kernels.h"

namespace fused_losses::cpu::FUSED_LOSSES_CAPABILITY {

TargetScan scan_targets(const IndexTarget& target, int64_t begin, int64_t end) {
  TargetScan scan{};
  switch (target.type) {
    case IndexType::Int64:
      scan = count_targets<int64_t>(target, begin, end);
      break;
    case IndexType::Int32:
      scan = count_targets<int32_t>(target, begin, end);
      break;
    case IndexType::UInt8:
      scan = count_targets<uint8_t>(target, begin, end);
      break;
  }
  if (target.class_weight != nullptr && scan.first_invalid < 0) {
    scan.weight =
        target.double_weight ? sum_weights<double>(target, begin, end) : sum_weights<float>(target, begin, end);
  }
  return scan;
}

}  // namespace fused_losses::cpu::FUSED_LOSSES_CAPABILITY
