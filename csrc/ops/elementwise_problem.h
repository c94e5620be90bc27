// One call of an elementwise loss on any device: checks, layout, and the parameters that its kernels take.
#pragma once

#include <optional>
#include <vector>

#include "../core/elementwise.h"
#include "tensors.h"

namespace fused_losses {

struct ElementwiseOperands {
  const Tensor& input;
  const Tensor& target;
  const std::optional<Tensor>& weight;
  const std::optional<Tensor>& pos_weight;
};

class ElementwiseProblem {
 public:
  ElementwiseProblem(const ElementwiseOperands& operands, int64_t reduction);

  ElementwiseParams params{};

  Reduction reduction() const { return reduction_; }
  const Tensor& input() const { return input_; }
  const std::vector<int64_t>& sizes() const { return sizes_; }
  const std::vector<int64_t>& strides() const { return strides_; }  // of all tensors of these sizes: the input's, dense
  ScalarType loss_type() const { return target_.scalar_type(); }
  double denominator() const { return reduction_ == Reduction::Mean ? static_cast<double>(params.num_elements) : 1.0; }

  // The gradient takes the input's own place. Not where that is no dense memory: false.
  [[nodiscard]] bool overwrite_input(const Tensor& input);

  // Uninitialised losses of every element, which the kernels fill.
  Tensor new_losses();

  // Checks the gradient of the losses. Where it is one value for all elements it is returned, for the operator to pass
  // on; else the parameters point to it.
  std::optional<Tensor> set_grad_output(const Tensor& grad_output);

 private:
  Reduction reduction_;
  Tensor input_;
  Tensor target_;
  std::optional<Tensor> grad_output_;
  std::vector<int64_t> sizes_;
  std::vector<int64_t> strides_;
};

}  // namespace fused_losses
