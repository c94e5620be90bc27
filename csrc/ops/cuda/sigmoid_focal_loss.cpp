// fused_losses::sigmoid_focal_loss and its backward on CUDA.
#include "elementwise_call.h"

namespace fused_losses::cuda {
namespace {

struct Call : ElementwiseCall {
  Call(const ElementwiseOperands& operands, int64_t reduction)
      : ElementwiseCall(sigmoid_focal_loss, operands, reduction) {}
};

}  // namespace
}  // namespace fused_losses::cuda

STABLE_TORCH_LIBRARY_IMPL(FUSED_LOSSES_LIBRARY, FUSED_LOSSES_DISPATCH_KEY, library) {
  using namespace fused_losses::cuda;
  fused_losses::SigmoidFocalLossOperators<Call>::implement(library);
}
