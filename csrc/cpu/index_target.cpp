// The checking pass over class indices. Compiled once per instruction set.
#include "index_target.h"

#include "kernels.h"

namespace fused_losses::cpu::FUSED_LOSSES_CAPABILITY {

TargetScan scan_targets(const IndexTarget& target, int64_t begin, int64_t end) {
  switch (target.type) {
    case IndexType::Int64:
      return scan<int64_t>(target, begin, end);
    case IndexType::Int32:
      return scan<int32_t>(target, begin, end);
    case IndexType::UInt8:
      return scan<uint8_t>(target, begin, end);
  }
  __builtin_unreachable();
}

}  // namespace fused_losses::cpu::FUSED_LOSSES_CAPABILITY
