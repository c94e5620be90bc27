// One call of an elementwise loss on the CPU.
#pragma once

#include "../cpu/kernels.h"
#include "cpu_tensors.h"
#include "elementwise_operators.h"
#include "parallel.h"

namespace fused_losses {

// One call: the problem and its kernel.
class ElementwiseCall : public ElementwiseProblem {
 public:
  static constexpr bool kPreparesGradients = true;

  // `checks_range` asks for torch's RuntimeError when a value lies outside [0, 1].
  ElementwiseCall(cpu::BinaryCrossEntropyKernel* kernel, bool checks_range, const ElementwiseOperands& operands,
                  int64_t reduction)
      : ElementwiseProblem(operands, reduction), kernel_(kernel), checks_range_(checks_range) {
    params.elements_per_block = 32768;
  }

  Tensor new_gradient() {
    Tensor gradient = empty_gradient(sizes(), strides(), input().scalar_type(), input());
    params.gradient = gradient.data_ptr();
    params.stream_gradient = is_streamed(gradient);
    return gradient;
  }

  void use_grad_output(const Tensor& grad_output) {
    if (const std::optional<Tensor> common = set_grad_output(grad_output)) use_grad_output(scalar_value(*common));
  }
  void use_grad_output(double grad_output) { params.gradient_scale *= grad_output; }

  void run() const {
    for_each_block(num_blocks(),
                   [&](int64_t block_begin, int64_t block_end) { kernel_(params, block_begin, block_end); });
  }

  Tensor run_to_loss() {
    std::vector<int32_t> faults(checks_range_ ? static_cast<size_t>(num_blocks()) : 0);
    params.block_faults = checks_range_ ? faults.data() : nullptr;
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
  bool checks_range_;
};

}  // namespace fused_losses
