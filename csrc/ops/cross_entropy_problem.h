// One call of cross-entropy on any device: checks, layout, and the parameters that its kernels take. What depends on
// the device is left to the operators: the means' denominators, the gradient's memory, the choice of the kernel.
#pragma once

#include <optional>
#include <vector>

#include "../core/cross_entropy.h"
#include "class_layout.h"
#include "tensors.h"

namespace fused_losses {

struct CrossEntropyOptions {
  // As the schemas list them.
  static CrossEntropyOptions of(int64_t reduction, int64_t ignore_index, double label_smoothing, bool promote,
                                double logit_scale, double softcap, double lse_square_scale, double focal_gamma) {
    return {to_reduction(reduction), ignore_index, label_smoothing, promote, logit_scale, softcap,
            lse_square_scale,        focal_gamma};
  }

  Reduction reduction;
  int64_t ignore_index;
  double label_smoothing;
  bool promote;
  // See Note [Terms of a row].
  double logit_scale = 1;
  double softcap = 0;  // 0: none
  double lse_square_scale = 0;
  double focal_gamma = 0;
};

class CrossEntropyProblem {
 public:
  CrossEntropyProblem(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& class_weight,
                      const CrossEntropyOptions& options, bool wants_gradient);

  CrossEntropyParams params{};

  const CrossEntropyOptions& options() const { return options_; }
  const Tensor& logits() const { return logits_; }
  const std::vector<int64_t>& sizes() const { return sizes_; }
  // Of the gradient that the kernels write, in memory of its own.
  const std::vector<int64_t>& gradient_strides() const { return gradient_strides_; }
  // Of the one that the operators return, those of torch.empty_like(logits): others where no kernel can walk these.
  const std::vector<int64_t>& returned_strides() const { return returned_strides_; }
  Tensor as_returned(const Tensor& gradient) const { return at_strides(gradient, returned_strides_); }
  bool is_probability() const { return params.target_kind == TargetKind::Probability; }
  bool has_contiguous_classes() const { return contiguous_classes_; }
  ScalarType accumulation() const { return accumulation_type(logits_.scalar_type()); }

  // Probabilities of float32 make a float32 loss, as torch's type promotion does.
  ScalarType loss_type() const;

  // The gradient takes the logits' own place. Not where two of their elements share memory, or they were copied: false.
  [[nodiscard]] bool overwrite_logits(const Tensor& logits);

  // Uninitialised losses of every position, which the kernels fill.
  Tensor new_losses();
  // [3, num_positions], the rows' m, S and S' or, with probability targets, Q.
  Tensor new_statistics();
  // The kernels fill them, or read those of a forward.
  void set_statistics(const Tensor& statistics);
  // Makes it the backward of a forward that left these statistics.
  void set_backward(const Tensor& grad_output, const Tensor& statistics);
  void set_grad_output(const Tensor& grad_output);

 private:
  void check_terms() const;
  void set_target(const Tensor& target);
  void set_layout(bool wants_gradient);
  std::optional<PositionLayout> copied_layout(const std::vector<int64_t>& strides);
  std::optional<PositionLayout> try_layout() const;

  CrossEntropyOptions options_;
  std::vector<int64_t> sizes_;
  ClassShape shape_;
  Tensor logits_;
  Tensor target_;
  std::optional<Tensor> class_weight_;
  std::optional<Tensor> grad_output_;
  std::optional<Tensor> statistics_;
  std::vector<int64_t> returned_strides_;
  std::vector<int64_t> gradient_strides_;
  bool contiguous_classes_ = false;
};

}  // namespace fused_losses
