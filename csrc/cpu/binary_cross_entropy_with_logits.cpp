// Binary cross-entropy of logits on the CPU. Compiled once per instruction set.
#include "../core/binary_cross_entropy_formulas.h"
#include "elementwise_loss.h"
#include "flush_to_zero.h"
#include "kernels.h"

namespace fused_losses::cpu::FUSED_LOSSES_CAPABILITY {

void binary_cross_entropy_with_logits(const ElementwiseParams& params, int64_t block_begin, int64_t block_end) {
  const FlushToZero flush;
  elementwise_loss<LogitFormula>(params, block_begin, block_end);
}

}  // namespace fused_losses::cpu::FUSED_LOSSES_CAPABILITY
