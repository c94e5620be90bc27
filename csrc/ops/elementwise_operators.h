// The operators of the elementwise losses on any device: how the variants are made of one call.
//
// Call is a backend's ElementwiseProblem of one of the losses, made of the operands and the reduction, with
//   Tensor new_gradient()              uninitialised, and the parameters point to it
//   void use_grad_output(grad_output)  the parameters know it, be it a tensor or the value of one that holds one number
//   void run()                         the kernels, for what the parameters ask for
//   Tensor run_to_loss()               the forward, and its losses reduced
//   kPreparesGradients                 whether the gradient may wait for the backward
#pragma once

#include <tuple>

#include "elementwise_problem.h"
#include "prepared_gradients.h"

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

inline CallKey key_of(char loss, const ElementwiseOperands& operands, int64_t reduction) {
  return {{&operands.input, &operands.target, optional_operand(operands.weight), optional_operand(operands.pos_weight)},
          {loss, reduction}};
}

// See Note [Prepared gradients].
template <class Call>
std::tuple<Tensor, Tensor> prepared_elementwise_loss(char loss_key, const ElementwiseOperands& operands,
                                                     int64_t reduction) {
  if constexpr (Call::kPreparesGradients) {
    const CallKey key = key_of(loss_key, operands, reduction);
    const std::optional<Tensor> ticket = to_reduction(reduction) != Reduction::None
                                             ? PreparedGradients::new_ticket({1}, ScalarType::Float, key)
                                             : std::nullopt;
    if (ticket.has_value()) {
      *static_cast<float*>(ticket->data_ptr()) = 0;
      const std::optional<double> expected = PreparedGradients::expected_grad_output(key);
      if (!expected.has_value()) return {elementwise_loss<Call>(operands, reduction), *ticket};
      const auto [loss, gradient] = elementwise_loss_with_gradient<Call>(operands, reduction, *expected);
      PreparedGradients::keep(*ticket, *expected, gradient);
      return {loss, *ticket};
    }
  }
  Tensor ticket = empty({1}, ScalarType::Float, operands.input);
  return {elementwise_loss<Call>(operands, reduction), torch::stable::zero_(ticket)};
}

template <class Call>
Tensor prepared_elementwise_backward(char loss_key, const Tensor& grad_output, const ElementwiseOperands& operands,
                                     const Tensor& ticket, int64_t reduction) {
  if constexpr (Call::kPreparesGradients) {
    if (const std::optional<Tensor> gradient =
            PreparedGradients::take(ticket, key_of(loss_key, operands, reduction), grad_output)) {
      return *gradient;
    }
  }
  return elementwise_loss_backward<Call>(grad_output, operands, reduction);
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

  static std::tuple<Tensor, Tensor> prepared(const Tensor& input, const Tensor& target,
                                             const std::optional<Tensor>& weight, int64_t reduction) {
    return prepared_elementwise_loss<Call>('b', {input, target, weight, kNoPosWeight}, reduction);
  }

  static Tensor prepared_backward(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                                  const std::optional<Tensor>& weight, const Tensor& ticket, int64_t reduction) {
    return prepared_elementwise_backward<Call>('b', grad_output, {input, target, weight, kNoPosWeight}, ticket,
                                               reduction);
  }

  static Tensor backward(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                         const std::optional<Tensor>& weight, int64_t reduction) {
    return elementwise_loss_backward<Call>(grad_output, {input, target, weight, kNoPosWeight}, reduction);
  }

  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("binary_cross_entropy", TORCH_BOX(&loss));
    library.impl("binary_cross_entropy_forward", TORCH_BOX(&loss));
    library.impl("binary_cross_entropy_with_gradient", TORCH_BOX(&with_gradient));
    library.impl("binary_cross_entropy_prepared", TORCH_BOX(&prepared));
    library.impl("binary_cross_entropy_prepared_backward", TORCH_BOX(&prepared_backward));
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

  static std::tuple<Tensor, Tensor> prepared(const Tensor& logits, const Tensor& target,
                                             const std::optional<Tensor>& weight,
                                             const std::optional<Tensor>& pos_weight, int64_t reduction) {
    return prepared_elementwise_loss<Call>('l', {logits, target, weight, pos_weight}, reduction);
  }

  static Tensor prepared_backward(const Tensor& grad_output, const Tensor& logits, const Tensor& target,
                                  const std::optional<Tensor>& weight, const std::optional<Tensor>& pos_weight,
                                  const Tensor& ticket, int64_t reduction) {
    return prepared_elementwise_backward<Call>('l', grad_output, {logits, target, weight, pos_weight}, ticket,
                                               reduction);
  }

  static Tensor backward(const Tensor& grad_output, const Tensor& logits, const Tensor& target,
                         const std::optional<Tensor>& weight, const std::optional<Tensor>& pos_weight,
                         int64_t reduction) {
    return elementwise_loss_backward<Call>(grad_output, {logits, target, weight, pos_weight}, reduction);
  }

  // Whether it was written: not where the gradient has no place over the logits.
  static bool backward_over_logits(const Tensor& grad_output, const Tensor& logits, const Tensor& target,
                                   const std::optional<Tensor>& weight, const std::optional<Tensor>& pos_weight,
                                   int64_t reduction) {
    Call call({logits, target, weight, pos_weight}, reduction);
    call.use_grad_output(grad_output);
    if (!call.overwrite_input(logits)) return false;
    call.params.mode = ElementwiseMode::Backward;
    call.run();
    return true;
  }

  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("binary_cross_entropy_with_logits", TORCH_BOX(&loss));
    library.impl("binary_cross_entropy_with_logits_forward", TORCH_BOX(&loss));
    library.impl("binary_cross_entropy_with_logits_with_gradient", TORCH_BOX(&with_gradient));
    library.impl("binary_cross_entropy_with_logits_prepared", TORCH_BOX(&prepared));
    library.impl("binary_cross_entropy_with_logits_prepared_backward", TORCH_BOX(&prepared_backward));
    library.impl("binary_cross_entropy_with_logits_backward", TORCH_BOX(&backward));
    library.impl("binary_cross_entropy_with_logits_backward_over_logits", TORCH_BOX(&backward_over_logits));
  }
};

template <class Call>
struct SigmoidFocalLossOperators {
  static inline const std::optional<Tensor> kNoWeight;

  struct FocalCall : Call {
    FocalCall(const Tensor& logits, const Tensor& target, double alpha, double gamma, int64_t reduction)
        : Call({logits, target, kNoWeight, kNoWeight}, reduction) {
      this->params.focal_alpha = alpha;
      this->params.focal_gamma = gamma;
    }
  };

  static Tensor loss(const Tensor& logits, const Tensor& target, double alpha, double gamma, int64_t reduction) {
    FocalCall call(logits, target, alpha, gamma, reduction);
    call.params.mode = ElementwiseMode::Loss;
    return call.run_to_loss();
  }

  static Tensor backward(const Tensor& grad_output, const Tensor& logits, const Tensor& target, double alpha,
                         double gamma, int64_t reduction) {
    FocalCall call(logits, target, alpha, gamma, reduction);
    call.use_grad_output(grad_output);
    Tensor gradient = call.new_gradient();
    call.params.mode = ElementwiseMode::Backward;
    call.run();
    return gradient;
  }

  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("sigmoid_focal_loss", TORCH_BOX(&loss));
    library.impl("sigmoid_focal_loss_backward", TORCH_BOX(&backward));
  }
};

}  // namespace fused_losses
