// fused_losses::binary_cross_entropy_with_logits and its variants on CUDA.
#include "elementwise_call.h"

namespace fused_losses::cuda {
namespace {

struct Call : ElementwiseCall {
  Call(const ElementwiseOperands& operands, int64_t reduction)
      : ElementwiseCall(binary_cross_entropy_with_logits, operands, reduction) {}
};

void rescale_gradient(const Tensor& grad_output, const Tensor& gradient, double prepared_for, const Tensor& logits,
                      const Tensor& target, const std::optional<Tensor>& weight,
                      const std::optional<Tensor>& pos_weight, int64_t reduction) {
  rescale_elementwise_gradient<Call>(grad_output, gradient, prepared_for, {logits, target, weight, pos_weight},
                                     reduction);
}

}  // namespace
}  // namespace fused_losses::cuda

STABLE_TORCH_LIBRARY_IMPL(FUSED_LOSSES_LIBRARY, FUSED_LOSSES_DISPATCH_KEY, library) {
  using namespace fused_losses::cuda;
  fused_losses::BinaryCrossEntropyWithLogitsOperators<Call>::implement(library);
  library.impl("binary_cross_entropy_with_logits_rescale_gradient", TORCH_BOX(&rescale_gradient));
}
