// One call of the negative log-likelihood on any device: checks, layout, and the parameters that its kernels take.
#pragma once

#include <optional>
#include <vector>

#include "../core/nll_loss.h"
#include "class_layout.h"
#include "tensors.h"

namespace fused_losses {

struct NLLLossOptions {
  Reduction reduction;
  int64_t ignore_index;
  bool promote;
};

class NLLLossProblem {
 public:
  // The forward.
  NLLLossProblem(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                 const NLLLossOptions& options);
  // The backward, which needs nothing of the input but its shape and type; its gradient is contiguous.
  NLLLossProblem(const Tensor& grad_output, const Tensor& target, const std::optional<Tensor>& weight,
                 const std::vector<int64_t>& input_sizes, ScalarType input_type, const NLLLossOptions& options);

  NLLLossParams params{};

  ScalarType loss_type() const { return options_.promote ? accumulation_type(type_) : type_; }

  // Uninitialised losses of every position, which the kernels fill.
  Tensor new_losses();

 private:
  void set_target(const std::optional<Tensor>& weight);

  NLLLossOptions options_;
  ScalarType type_;
  std::vector<int64_t> sizes_;
  ClassShape shape_;
  Tensor target_;
  std::optional<Tensor> input_;
  std::optional<Tensor> class_weight_;
  std::optional<Tensor> grad_output_;
};

}  // namespace fused_losses
