// fused_losses::sigmoid_focal_loss and its backward on the CPU: see Note [Focal loss].
#include "../cpu/capability.h"
#include "elementwise_call.h"

namespace fused_losses {
namespace {

const std::optional<Tensor> kNoWeight;

struct Call : ElementwiseCall {
  Call(const Tensor& logits, const Tensor& target, double alpha, double gamma, int64_t reduction)
      : ElementwiseCall(cpu::kernels().sigmoid_focal_loss, false, {logits, target, kNoWeight, kNoWeight}, reduction) {
    params.focal_alpha = alpha;
    params.focal_gamma = gamma;
  }
};

Tensor sigmoid_focal_loss(const Tensor& logits, const Tensor& target, double alpha, double gamma, int64_t reduction) {
  Call call(logits, target, alpha, gamma, reduction);
  call.params.mode = ElementwiseMode::Loss;
  return call.run_to_loss();
}

Tensor sigmoid_focal_loss_backward(const Tensor& grad_output, const Tensor& logits, const Tensor& target, double alpha,
                                   double gamma, int64_t reduction) {
  Call call(logits, target, alpha, gamma, reduction);
  call.use_grad_output(grad_output);
  Tensor gradient = call.new_gradient();
  call.params.mode = ElementwiseMode::Backward;
  call.run();
  return gradient;
}

}  // namespace
}  // namespace fused_losses

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, library) {
  using namespace fused_losses;
  library.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  library.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
}
