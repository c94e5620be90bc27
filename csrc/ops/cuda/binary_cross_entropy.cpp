// fused_losses::binary_cross_entropy and its variants on CUDA.
#include "elementwise_loss.h"

namespace fused_losses::cuda {
namespace {

const std::optional<Tensor> kNoPosWeight;

Tensor loss(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight, int64_t reduction) {
  return elementwise_loss(binary_cross_entropy, {input, target, weight, kNoPosWeight}, reduction);
}

std::tuple<Tensor, Tensor> with_gradient(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                                         int64_t reduction) {
  return elementwise_loss_with_gradient(binary_cross_entropy, {input, target, weight, kNoPosWeight}, reduction);
}

Tensor backward(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                const std::optional<Tensor>& weight, int64_t reduction) {
  return elementwise_loss_backward(binary_cross_entropy, grad_output, {input, target, weight, kNoPosWeight}, reduction);
}

void rescale_gradient(const Tensor& grad_output, const Tensor& gradient, const Tensor& input, const Tensor& target,
                      const std::optional<Tensor>& weight, int64_t reduction) {
  elementwise_loss_rescale_gradient(binary_cross_entropy, grad_output, gradient, {input, target, weight, kNoPosWeight},
                                    reduction);
}

}  // namespace
}  // namespace fused_losses::cuda

STABLE_TORCH_LIBRARY_IMPL(FUSED_LOSSES_LIBRARY, FUSED_LOSSES_DISPATCH_KEY, library) {
  using namespace fused_losses::cuda;
  library.impl("binary_cross_entropy", TORCH_BOX(&loss));
  library.impl("binary_cross_entropy_forward", TORCH_BOX(&loss));
  library.impl("binary_cross_entropy_with_gradient", TORCH_BOX(&with_gradient));
  library.impl("binary_cross_entropy_backward", TORCH_BOX(&backward));
  library.impl("binary_cross_entropy_rescale_gradient", TORCH_BOX(&rescale_gradient));
}
