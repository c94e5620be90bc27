// The operators of the elementwise losses on any device: how the variants are made of one call.
//
// Call is a backend's ElementwiseProblem of one of the losses, made of the operands and the reduction, with
//   Tensor new_gradient()              uninitialised, and the parameters point to it
//   void use_grad_output(grad_output)  the parameters know it, be it a tensor or the value of one that holds one number
//   void run()                         the kernels, for what the parameters ask for
//   Tensor run_to_loss()               the forward, and its losses reduced
#pragma once

#include <tuple>

#include "elementwise_problem.h"

namespace fused_losses {

template <class Call>
Tensor elementwise_loss(const ElementwiseOperands& operands, int64_t reduction) {
  Call call(operands, reduction);
  call.params.mode = ElementwiseMode::Loss;
  return call.run_to_loss();
}

template <class Call>
std::tuple<Tensor, Tensor> elementwise_loss_with_gradient(const ElementwiseOperands& operands, int64_t reduction,
                                                          double grad_output) {
  if (to_reduction(reduction) == Reduction::None) refuse("unreduced losses have a gradient only for a grad_output");
  Call call(operands, reduction);
  call.use_grad_output(grad_output);
  Tensor gradient = call.new_gradient();
  call.params.mode = ElementwiseMode::LossAndGradient;
  Tensor loss = call.run_to_loss();
  return {loss, gradient};
}

template <class Call>
Tensor elementwise_loss_backward(const Tensor& grad_output, const ElementwiseOperands& operands, int64_t reduction) {
  Call call(operands, reduction);
  call.use_grad_output(grad_output);
  Tensor gradient = call.new_gradient();
  call.params.mode = ElementwiseMode::Backward;
  call.run();
  return gradient;
}

template <class Call>
struct BinaryCrossEntropyOperators {
  static inline const std::optional<Tensor> kNoPosWeight;

  static Tensor loss(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                     int64_t reduction) {
    return elementwise_loss<Call>({input, target, weight, kNoPosWeight}, reduction);
  }

  static std::tuple<Tensor, Tensor> with_gradient(const Tensor& input, const Tensor& target,
                                                  const std::optional<Tensor>& weight, int64_t reduction,
                                                  double grad_output) {
    return elementwise_loss_with_gradient<Call>({input, target, weight, kNoPosWeight}, reduction, grad_output);
  }

  static Tensor backward(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                         const std::optional<Tensor>& weight, int64_t reduction) {
    return elementwise_loss_backward<Call>(grad_output, {input, target, weight, kNoPosWeight}, reduction);
  }

  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("binary_cross_entropy", TORCH_BOX(&loss));
    library.impl("binary_cross_entropy_forward", TORCH_BOX(&loss));
    library.impl("binary_cross_entropy_with_gradient", TORCH_BOX(&with_gradient));
    library.impl("binary_cross_entropy_backward", TORCH_BOX(&backward));
  }
};

template <class Call>
struct BinaryCrossEntropyWithLogitsOperators {
  static Tensor loss(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                     const std::optional<Tensor>& pos_weight, int64_t reduction) {
    return elementwise_loss<Call>({logits, target, weight, pos_weight}, reduction);
  }

  static std::tuple<Tensor, Tensor> with_gradient(const Tensor& logits, const Tensor& target,
                                                  const std::optional<Tensor>& weight,
                                                  const std::optional<Tensor>& pos_weight, int64_t reduction,
                                                  double grad_output) {
    return elementwise_loss_with_gradient<Call>({logits, target, weight, pos_weight}, reduction, grad_output);
  }

  static Tensor backward(const Tensor& grad_output, const Tensor& logits, const Tensor& target,
                         const std::optional<Tensor>& weight, const std::optional<Tensor>& pos_weight,
                         int64_t reduction) {
    return elementwise_loss_backward<Call>(grad_output, {logits, target, weight, pos_weight}, reduction);
  }

  // Refused where the gradient has no place over the logits.
  static void backward_over_logits(const Tensor& grad_output, const Tensor& logits, const Tensor& target,
                                   const std::optional<Tensor>& weight, const std::optional<Tensor>& pos_weight,
                                   int64_t reduction) {
    Call call({logits, target, weight, pos_weight}, reduction);
    call.use_grad_output(grad_output);
    call.overwrite_input(logits);
    call.params.mode = ElementwiseMode::Backward;
    call.run();
  }

  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("binary_cross_entropy_with_logits", TORCH_BOX(&loss));
    library.impl("binary_cross_entropy_with_logits_forward", TORCH_BOX(&loss));
    library.impl("binary_cross_entropy_with_logits_with_gradient", TORCH_BOX(&with_gradient));
    library.impl("binary_cross_entropy_with_logits_backward", TORCH_BOX(&backward));
    library.impl("binary_cross_entropy_with_logits_backward_over_logits", TORCH_BOX(&backward_over_logits));
  }
};

}  // namespace fused_losses
