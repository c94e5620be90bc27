// The operators of cross-entropy on any device: how the variants are made of one call.
//
// Call is a backend's CrossEntropyProblem with
//   Tensor new_gradient()   uninitialised, and the parameters point to it
//   void run()              the kernels, for what the parameters ask for
//   Tensor run_to_loss()    the forward, and its losses reduced
#pragma once

#include <tuple>

#include "cross_entropy_problem.h"

namespace fused_losses {

template <class Call>
struct CrossEntropyOperators {
  static Tensor loss(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& class_weight,
                     int64_t reduction, int64_t ignore_index, double label_smoothing, bool promote) {
    Call call(logits, target, class_weight, {to_reduction(reduction), ignore_index, label_smoothing, promote}, false);
    call.params.mode = CrossEntropyMode::Loss;
    return call.run_to_loss();
  }

  static std::tuple<Tensor, Tensor> with_gradient(const Tensor& logits, const Tensor& target,
                                                  const std::optional<Tensor>& class_weight, int64_t reduction,
                                                  int64_t ignore_index, double label_smoothing, bool promote,
                                                  double grad_output) {
    const Reduction kind = to_reduction(reduction);
    if (kind == Reduction::None) refuse("unreduced losses have a gradient only for a grad_output");
    Call call(logits, target, class_weight, {kind, ignore_index, label_smoothing, promote}, true);
    Tensor gradient = call.new_gradient();
    call.params.mode = CrossEntropyMode::LossAndGradient;
    call.params.expected_grad_output = grad_output;
    Tensor loss = call.run_to_loss();
    return {loss, gradient};
  }

  static std::tuple<Tensor, Tensor> with_statistics(const Tensor& logits, const Tensor& target,
                                                    const std::optional<Tensor>& class_weight, int64_t reduction,
                                                    int64_t ignore_index, double label_smoothing, bool promote) {
    // The layout is the backward's: a kernel need not leave statistics of ignored rows that another would read.
    Call call(logits, target, class_weight, {to_reduction(reduction), ignore_index, label_smoothing, promote}, true);
    call.params.mode = CrossEntropyMode::Loss;
    const Tensor statistics = call.new_statistics();
    return {call.run_to_loss(), statistics};
  }

  static Tensor backward(const Tensor& grad_output, const Tensor& logits, const Tensor& target,
                         const std::optional<Tensor>& class_weight, const Tensor& statistics, int64_t reduction,
                         int64_t ignore_index, double label_smoothing, bool promote) {
    Call call(logits, target, class_weight, {to_reduction(reduction), ignore_index, label_smoothing, promote}, true);
    call.set_backward(grad_output, statistics);
    Tensor gradient = call.new_gradient();
    call.run();
    return gradient;
  }

  static void backward_over_logits(const Tensor& grad_output, const Tensor& logits, const Tensor& target,
                                   const std::optional<Tensor>& class_weight, const Tensor& statistics,
                                   int64_t reduction, int64_t ignore_index, double label_smoothing, bool promote) {
    Call call(logits, target, class_weight, {to_reduction(reduction), ignore_index, label_smoothing, promote}, false);
    call.set_backward(grad_output, statistics);
    call.overwrite_logits(logits);
    call.run();
  }

  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("cross_entropy", TORCH_BOX(&loss));
    library.impl("cross_entropy_forward", TORCH_BOX(&loss));
    library.impl("cross_entropy_with_gradient", TORCH_BOX(&with_gradient));
    library.impl("cross_entropy_with_statistics", TORCH_BOX(&with_statistics));
    library.impl("cross_entropy_backward", TORCH_BOX(&backward));
    library.impl("cross_entropy_backward_over_logits", TORCH_BOX(&backward_over_logits));
  }
};

}  // namespace fused_losses
