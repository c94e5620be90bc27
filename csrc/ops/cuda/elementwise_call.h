// One call of an elementwise loss on CUDA.
#pragma once

#include "../elementwise_operators.h"
#include "device.h"

namespace fused_losses::cuda {

using ElementwiseKernel = int64_t(const ElementwiseParams&, Stream);

// One call: the problem, its stream and its kernel.
class ElementwiseCall : public ElementwiseProblem {
 public:
  static constexpr bool kPreparesGradients = false;

  ElementwiseCall(ElementwiseKernel* kernel, const ElementwiseOperands& operands, int64_t reduction)
      : ElementwiseProblem(operands, reduction), kernel_(kernel), scope_(operands.input) {}

  Tensor new_gradient() {
    Tensor gradient = empty_strided(sizes(), strides(), input().scalar_type(), input());
    params.gradient = gradient.data_ptr();
    return gradient;
  }

  // A gradient that this call's forward made.
  void set_gradient(const Tensor& gradient) {
    check_gradient(gradient, sizes(), strides(), input());
    params.gradient = gradient.data_ptr();
  }

  // A value that is the same for all elements stays on the device.
  void use_grad_output(const Tensor& grad_output) {
    if (const std::optional<Tensor> common = set_grad_output(grad_output)) {
      common_grad_output_ = cast(*common, loss_type());
      params.device_grad_output = common_grad_output_->data_ptr();
    }
  }

  void use_grad_output(double grad_output) { params.gradient_scale *= grad_output; }

  void run() const { kernel_(params, scope_.stream()); }

  Tensor run_to_loss() {
    if (reduction() == Reduction::None) {
      Tensor losses = new_losses();
      run();
      return losses;
    }
    Scratch scratch(input());
    params.block_losses = scratch.block_sums();
    const int64_t count = kernel_(params, scope_.stream());
    return reduced_loss(scratch, count, denominator(), nullptr, loss_type(), input(), scope_.stream());
  }

 private:
  ElementwiseKernel* kernel_;
  DeviceScope scope_;
  std::optional<Tensor> common_grad_output_;
};

// Computes `gradient` anew for this grad_output, on the device and only where it was prepared for another.
template <class Call>
void rescale_elementwise_gradient(const Tensor& grad_output, const Tensor& gradient, double prepared_for,
                                  const ElementwiseOperands& operands, int64_t reduction) {
  Call call(operands, reduction);
  call.use_grad_output(grad_output);
  call.set_gradient(gradient);
  call.params.prepared_for = prepared_for;
  call.params.mode = ElementwiseMode::LossAndGradient;
  call.run();
}

}  // namespace fused_losses::cuda
