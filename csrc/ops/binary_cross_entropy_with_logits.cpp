// fused_losses::binary_cross_entropy_with_logits and its variants.
#include "../cpu/capability.h"
#include "elementwise_loss.h"

namespace fused_losses {
namespace {

Tensor binary_cross_entropy_with_logits(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                                        const std::optional<Tensor>& pos_weight, int64_t reduction) {
  return elementwise_loss(cpu::kernels().binary_cross_entropy_with_logits, {logits, target, weight, pos_weight},
                          reduction, false);
}

std::tuple<Tensor, Tensor> binary_cross_entropy_with_logits_with_gradient(const Tensor& logits, const Tensor& target,
                                                                          const std::optional<Tensor>& weight,
                                                                          const std::optional<Tensor>& pos_weight,
                                                                          int64_t reduction) {
  return elementwise_loss_with_gradient(cpu::kernels().binary_cross_entropy_with_logits,
                                        {logits, target, weight, pos_weight}, reduction, false);
}

Tensor binary_cross_entropy_with_logits_backward(const Tensor& grad_output, const Tensor& logits, const Tensor& target,
                                                 const std::optional<Tensor>& weight,
                                                 const std::optional<Tensor>& pos_weight, int64_t reduction) {
  return elementwise_loss_backward(cpu::kernels().binary_cross_entropy_with_logits, grad_output,
                                   {logits, target, weight, pos_weight}, reduction);
}

void binary_cross_entropy_with_logits_backward_over_logits(const Tensor& grad_output, const Tensor& logits,
                                                           const Tensor& target, const std::optional<Tensor>& weight,
                                                           const std::optional<Tensor>& pos_weight, int64_t reduction) {
  elementwise_loss_backward_over_input(cpu::kernels().binary_cross_entropy_with_logits, grad_output,
                                       {logits, target, weight, pos_weight}, reduction);
}

}  // namespace
}  // namespace fused_losses

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, library) {
  using namespace fused_losses;
  library.impl("binary_cross_entropy_with_logits", TORCH_BOX(&binary_cross_entropy_with_logits));
  library.impl("binary_cross_entropy_with_logits_forward", TORCH_BOX(&binary_cross_entropy_with_logits));
  library.impl("binary_cross_entropy_with_logits_with_gradient",
               TORCH_BOX(&binary_cross_entropy_with_logits_with_gradient));
  library.impl("binary_cross_entropy_with_logits_backward", TORCH_BOX(&binary_cross_entropy_with_logits_backward));
  library.impl("binary_cross_entropy_with_logits_backward_over_logits",
               TORCH_BOX(&binary_cross_entropy_with_logits_backward_over_logits));
}
