#include "elementwise_loss.cuh"

namespace fused_losses::cuda {
int64_t binary_cross_entropy(const ElementwiseParams& params, Stream stream) {
  return elementwise_loss<ProbabilityFormula>(params, stream);
}
}  // namespace fused_losses::cuda
