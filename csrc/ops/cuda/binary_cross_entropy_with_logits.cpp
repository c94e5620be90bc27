// fused_losses::binary_cross_entropy_with_logits and its variants on CUDA.
#include "elementwise_loss.h"

namespace fused_losses::cuda {
namespace {

Tensor loss(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
            const std::optional<Tensor>& pos_weight, int64_t reduction) {
  return elementwise_loss(binary_cross_entropy_with_logits, {logits, target, weight, pos_weight}, reduction);
}

std::tuple<Tensor, Tensor> with_gradient(const Tensor& logits, const Tensor& target,
                                         const std::optional<Tensor>& weight, const std::optional<Tensor>& pos_weight,
                                         int64_t reduction) {
  return elementwise_loss_with_gradient(binary_cross_entropy_with_logits, {logits, target, weight, pos_weight},
                                        reduction);
}

Tensor backward(const Tensor& grad_output, const Tensor& logits, const Tensor& target,
                const std::optional<Tensor>& weight, const std::optional<Tensor>& pos_weight, int64_t reduction) {
  return elementwise_loss_backward(binary_cross_entropy_with_logits, grad_output, {logits, target, weight, pos_weight},
                                   reduction);
}

void backward_over_logits(const Tensor& grad_output, const Tensor& logits, const Tensor& target,
                          const std::optional<Tensor>& weight, const std::optional<Tensor>& pos_weight,
                          int64_t reduction) {
  elementwise_loss_backward_over_input(binary_cross_entropy_with_logits, grad_output,
                                       {logits, target, weight, pos_weight}, reduction);
}

void rescale_gradient(const Tensor& grad_output, const Tensor& gradient, const Tensor& logits, const Tensor& target,
                      const std::optional<Tensor>& weight, const std::optional<Tensor>& pos_weight, int64_t reduction) {
  elementwise_loss_rescale_gradient(binary_cross_entropy_with_logits, grad_output, gradient,
                                    {logits, target, weight, pos_weight}, reduction);
}

}  // namespace
}  // namespace fused_losses::cuda

STABLE_TORCH_LIBRARY_IMPL(FUSED_LOSSES_LIBRARY, FUSED_LOSSES_DISPATCH_KEY, library) {
  using namespace fused_losses::cuda;
  library.impl("binary_cross_entropy_with_logits", TORCH_BOX(&loss));
  library.impl("binary_cross_entropy_with_logits_forward", TORCH_BOX(&loss));
  library.impl("binary_cross_entropy_with_logits_with_gradient", TORCH_BOX(&with_gradient));
  library.impl("binary_cross_entropy_with_logits_backward", TORCH_BOX(&backward));
  library.impl("binary_cross_entropy_with_logits_backward_over_logits", TORCH_BOX(&backward_over_logits));
  library.impl("binary_cross_entropy_with_logits_rescale_gradient", TORCH_BOX(&rescale_gradient));
}
