// Binary cross-entropy of probabilities on the CPU. Compiled once per instruction set.
#include "../core/binary_cross_entropy_formulas.h"
#include "elementwise_loss.h"
#include "kernels.h"

namespace fused_losses::cpu::FUSED_LOSSES_CAPABILITY {

void binary_cross_entropy(const ElementwiseParams& params, int64_t block_begin, int64_t block_end) {
  elementwise_loss<ProbabilityFormula>(params, block_begin, block_end);
}

}  // namespace fused_losses::cpu::FUSED_LOSSES_CAPABILITY
