// fused_losses::binary_cross_entropy and its variants on CUDA.
#include "elementwise_call.h"

namespace fused_losses::cuda {
namespace {

struct Call : ElementwiseCall {
  Call(const ElementwiseOperands& operands, int64_t reduction)
      : ElementwiseCall(binary_cross_entropy, operands, reduction) {}
};

void rescale_gradient(const Tensor& grad_output, const Tensor& gradient, double prepared_for, const Tensor& input,
                      const Tensor& target, const std::optional<Tensor>& weight, int64_t reduction) {
  const std::optional<Tensor> no_pos_weight;
  const ElementwiseOperands operands{input, target, weight, no_pos_weight};
  rescale_elementwise_gradient<Call>(grad_output, gradient, prepared_for, operands, reduction);
}

}  // namespace
}  // namespace fused_losses::cuda

STABLE_TORCH_LIBRARY_IMPL(FUSED_LOSSES_LIBRARY, FUSED_LOSSES_DISPATCH_KEY, library) {
  using namespace fused_losses::cuda;
  fused_losses::BinaryCrossEntropyOperators<Call>::implement(library);
  library.impl("binary_cross_entropy_rescale_gradient", TORCH_BOX(&rescale_gradient));
}
