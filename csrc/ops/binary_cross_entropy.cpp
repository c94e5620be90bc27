// fused_losses::binary_cross_entropy and its variants.
#include "../cpu/capability.h"
#include "elementwise_loss.h"

namespace fused_losses {
namespace {

const std::optional<Tensor> kNoPosWeight;

Tensor binary_cross_entropy(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                            int64_t reduction) {
  return elementwise_loss(cpu::kernels().binary_cross_entropy, {input, target, weight, kNoPosWeight}, reduction, true);
}

std::tuple<Tensor, Tensor> binary_cross_entropy_with_gradient(const Tensor& input, const Tensor& target,
                                                              const std::optional<Tensor>& weight, int64_t reduction) {
  return elementwise_loss_with_gradient(cpu::kernels().binary_cross_entropy, {input, target, weight, kNoPosWeight},
                                        reduction, true);
}

Tensor binary_cross_entropy_backward(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                                     const std::optional<Tensor>& weight, int64_t reduction) {
  return elementwise_loss_backward(cpu::kernels().binary_cross_entropy, grad_output,
                                   {input, target, weight, kNoPosWeight}, reduction);
}

}  // namespace
}  // namespace fused_losses

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, library) {
  using namespace fused_losses;
  library.impl("binary_cross_entropy", TORCH_BOX(&binary_cross_entropy));
  library.impl("binary_cross_entropy_forward", TORCH_BOX(&binary_cross_entropy));
  library.impl("binary_cross_entropy_with_gradient", TORCH_BOX(&binary_cross_entropy_with_gradient));
  library.impl("binary_cross_entropy_backward", TORCH_BOX(&binary_cross_entropy_backward));
}
