// The checking pass over class indices. Compiled once per instruction set.
#include "index_target.h"

#include "../core/dtype_dispatch.h"
#include "kernels.h"

namespace fused_losses::cpu::FUSED_LOSSES_CAPABILITY {

TargetScan scan_targets(const IndexTarget& target, int64_t begin, int64_t end) {
  return by_index_type(target.type, [&](auto index) { return scan<decltype(index)>(target, begin, end); });
}

}  // namespace fused_losses::cpu::FUSED_LOSSES_CAPABILITY
