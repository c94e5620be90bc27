#include "elementwise_loss.cuh"

namespace fused_losses::cuda {
int64_t binary_cross_entropy_with_logits(const ElementwiseParams& params, Stream stream) {
  return elementwise_loss<LogitFormula>(params, stream);
}
}  // namespace fused_losses::cuda
