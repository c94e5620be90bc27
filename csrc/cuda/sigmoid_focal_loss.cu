#include "elementwise_loss.cuh"

namespace fused_losses::cuda {
int64_t sigmoid_focal_loss(const ElementwiseParams& params, Stream stream) {
  return elementwise_loss<FocalFormula>(params, stream);
}
}  // namespace fused_losses::cuda
