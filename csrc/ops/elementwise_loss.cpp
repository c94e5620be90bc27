#include "elementwise_loss.h"

#include "cpu_tensors.h"
#include "parallel.h"

namespace fused_losses {
namespace {

constexpr int64_t kElementsPerBlock = 32768;

// One call: the problem and its kernel.
class Call : public ElementwiseProblem {
 public:
  Call(cpu::BinaryCrossEntropyKernel* kernel, const ElementwiseOperands& operands, int64_t reduction)
      : ElementwiseProblem(operands, reduction), kernel_(kernel) {
    params.elements_per_block = kElementsPerBlock;
  }

  Tensor new_gradient() {
    Tensor gradient = empty_gradient(sizes(), strides(), input().scalar_type(), input());
    params.gradient = gradient.data_ptr();
    params.stream_gradient = is_streamed(gradient);
    return gradient;
  }

  void fold_grad_output(const Tensor& grad_output) {
    if (const std::optional<Tensor> common = set_grad_output(grad_output)) {
      params.gradient_scale *= scalar_value(*common);
    }
  }

  void run() const {
    for_each_block(num_blocks(),
                   [&](int64_t block_begin, int64_t block_end) { kernel_(params, block_begin, block_end); });
  }

  Tensor run_to_loss(bool checks_range) {
    std::vector<int32_t> faults(checks_range ? static_cast<size_t>(num_blocks()) : 0);
    params.block_faults = checks_range ? faults.data() : nullptr;
    if (reduction() == Reduction::None) {
      const Tensor losses = new_losses();
      run();
      raise_faults(faults);
      return losses;
    }
    std::vector<double> block_losses(static_cast<size_t>(num_blocks()));
    params.block_losses = block_losses.data();
    run();
    raise_faults(faults);
    return scalar_tensor(ordered_sum(block_losses) / denominator(), loss_type(), input());
  }

 private:
  int64_t num_blocks() const { return blocks_of(params.num_elements, params.elements_per_block); }

  static void raise_faults(const std::vector<int32_t>& faults) {
    int32_t combined = 0;
    for (const int32_t fault : faults) combined |= fault;
    if (combined & kInputOutOfRange) throw std::runtime_error("all elements of input should be between 0 and 1");
    if (combined & kTargetOutOfRange) throw std::runtime_error("all elements of target should be between 0 and 1");
  }

  cpu::BinaryCrossEntropyKernel* kernel_;
};

}  // namespace

Tensor elementwise_loss(cpu::BinaryCrossEntropyKernel* kernel, const ElementwiseOperands& operands, int64_t reduction,
                        bool checks_range) {
  Call call(kernel, operands, reduction);
  call.params.mode = ElementwiseMode::Loss;
  return call.run_to_loss(checks_range);
}

std::tuple<Tensor, Tensor> elementwise_loss_with_gradient(cpu::BinaryCrossEntropyKernel* kernel,
                                                          const ElementwiseOperands& operands, int64_t reduction,
                                                          bool checks_range) {
  if (to_reduction(reduction) == Reduction::None) refuse("unreduced losses have a gradient only for a grad_output");
  Call call(kernel, operands, reduction);
  Tensor gradient = call.new_gradient();
  call.params.mode = ElementwiseMode::LossAndGradient;
  Tensor loss = call.run_to_loss(checks_range);
  return {loss, gradient};
}

Tensor elementwise_loss_backward(cpu::BinaryCrossEntropyKernel* kernel, const Tensor& grad_output,
                                 const ElementwiseOperands& operands, int64_t reduction) {
  Call call(kernel, operands, reduction);
  call.fold_grad_output(grad_output);
  Tensor gradient = call.new_gradient();
  call.params.mode = ElementwiseMode::Backward;
  call.run();
  return gradient;
}

void elementwise_loss_backward_over_input(cpu::BinaryCrossEntropyKernel* kernel, const Tensor& grad_output,
                                          const ElementwiseOperands& operands, int64_t reduction) {
  Call call(kernel, operands, reduction);
  call.fold_grad_output(grad_output);
  call.overwrite_input(operands.input);
  call.params.mode = ElementwiseMode::Backward;
  call.run();
}

}  // namespace fused_losses
