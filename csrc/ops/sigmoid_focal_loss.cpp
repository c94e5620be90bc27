// fused_losses::sigmoid_focal_loss and its backward on the CPU: see Note [Focal loss].
#include "../cpu/capability.h"
#include "elementwise_call.h"

namespace fused_losses {
namespace {

struct Call : ElementwiseCall {
  Call(const ElementwiseOperands& operands, int64_t reduction)
      : ElementwiseCall(cpu::kernels().sigmoid_focal_loss, false, operands, reduction) {}
};

}  // namespace
}  // namespace fused_losses

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, library) {
  using namespace fused_losses;
  SigmoidFocalLossOperators<Call>::implement(library);
}
