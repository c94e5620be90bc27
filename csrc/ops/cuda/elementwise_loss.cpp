#include "elementwise_loss.h"

namespace fused_losses::cuda {
namespace {

// One call: the problem, its stream and its kernel.
class Call : public ElementwiseProblem {
 public:
  Call(ElementwiseKernel* kernel, const ElementwiseOperands& operands, int64_t reduction)
      : ElementwiseProblem(operands, reduction), kernel_(kernel), scope_(operands.input) {}

  Tensor new_gradient() {
    Tensor gradient = empty_strided(sizes(), strides(), input().scalar_type(), input());
    params.gradient = gradient.data_ptr();
    return gradient;
  }

  // A gradient that this call's forward made.
  void set_gradient(const Tensor& gradient) {
    check_device(gradient, input());
    if (to_vector(gradient.sizes()) != sizes() || to_vector(gradient.strides()) != strides() ||
        gradient.scalar_type() != input().scalar_type()) {
      refuse("the gradient is not that of this call");
    }
    params.gradient = gradient.data_ptr();
  }

  // A value that is the same for all elements stays on the device.
  void point_to_grad_output(const Tensor& grad_output) {
    if (const std::optional<Tensor> common = set_grad_output(grad_output)) {
      common_grad_output_ = cast(*common, loss_type());
      params.device_grad_output = common_grad_output_->data_ptr();
    }
  }

  void run() const { kernel_(params, scope_.stream()); }

  Tensor run_to_loss() {
    if (reduction() == Reduction::None) {
      Tensor losses = new_losses();
      run();
      return losses;
    }
    const Scratch scratch(input());
    params.block_losses = scratch.block_sums();
    const int64_t count = kernel_(params, scope_.stream());
    return reduced_loss(scratch, count, denominator(), nullptr, loss_type(), input(), scope_.stream());
  }

 private:
  ElementwiseKernel* kernel_;
  DeviceScope scope_;
  std::optional<Tensor> common_grad_output_;
};

}  // namespace

Tensor elementwise_loss(ElementwiseKernel* kernel, const ElementwiseOperands& operands, int64_t reduction) {
  Call call(kernel, operands, reduction);
  call.params.mode = ElementwiseMode::Loss;
  return call.run_to_loss();
}

std::tuple<Tensor, Tensor> elementwise_loss_with_gradient(ElementwiseKernel* kernel,
                                                          const ElementwiseOperands& operands, int64_t reduction) {
  if (to_reduction(reduction) == Reduction::None) refuse("unreduced losses have a gradient only for a grad_output");
  Call call(kernel, operands, reduction);
  Tensor gradient = call.new_gradient();
  call.params.mode = ElementwiseMode::LossAndGradient;
  Tensor loss = call.run_to_loss();
  return {loss, gradient};
}

Tensor elementwise_loss_backward(ElementwiseKernel* kernel, const Tensor& grad_output,
                                 const ElementwiseOperands& operands, int64_t reduction) {
  Call call(kernel, operands, reduction);
  call.point_to_grad_output(grad_output);
  Tensor gradient = call.new_gradient();
  call.params.mode = ElementwiseMode::Backward;
  call.run();
  return gradient;
}

void elementwise_loss_backward_over_input(ElementwiseKernel* kernel, const Tensor& grad_output,
                                          const ElementwiseOperands& operands, int64_t reduction) {
  Call call(kernel, operands, reduction);
  call.point_to_grad_output(grad_output);
  call.overwrite_input(operands.input);
  call.params.mode = ElementwiseMode::Backward;
  call.run();
}

void elementwise_loss_rescale_gradient(ElementwiseKernel* kernel, const Tensor& grad_output, const Tensor& gradient,
                                       const ElementwiseOperands& operands, int64_t reduction) {
  Call call(kernel, operands, reduction);
  call.point_to_grad_output(grad_output);
  call.set_gradient(gradient);
  call.params.mode = ElementwiseMode::LossAndGradient;
  call.run();
}

}  // namespace fused_losses::cuda
