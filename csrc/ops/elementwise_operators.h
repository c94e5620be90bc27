// The operators of the elementwise losses on any device: how the variants are made of one call.
//
// Call is a backend's ElementwiseProblem of one of the losses, made of the operands and the reduction, with
//   Tensor new_gradient()              uninitialised, and the parameters point to it
//   void use_grad_output(grad_output)  the parameters know it, be it a tensor or the value of one that holds one number
//   void run()                         the kernels, for what the parameters ask for
//   Tensor run_to_loss()               the forward, and its losses reduced
//   kPreparesGradients                 whether the gradient may wait for the backward
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "elementwise_problem.h"
#include "prepared_gradients.h"

namespace fused_losses {

template <class Call>
Tensor elementwise_loss(Call& call) {
  call.params.mode = ElementwiseMode::Loss;
  return call.run_to_loss();
}

template <class Call>
std::tuple<Tensor, Tensor> elementwise_loss_with_gradient(Call& call, double grad_output) {
  if (call.reduction() == Reduction::None) refuse("unreduced losses have a gradient only for a grad_output");
  call.use_grad_output(grad_output);
  Tensor gradient = call.new_gradient();
  call.params.mode = ElementwiseMode::LossAndGradient;
  Tensor loss = call.run_to_loss();
  return {loss, gradient};
}

template <class Call>
Tensor elementwise_loss_backward(Call& call, const Tensor& grad_output) {
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

using OptionalWeight = const std::optional<Tensor>&;

// The operators of a loss with weights. `kKey` tells its prepared gradients from those of other losses: see Note
// [Prepared gradients]. Weights: an OptionalWeight or, with a pos_weight, two.
template <class Call, char kKey, class... Weights>
struct WeightedLossOperators {
  static Tensor loss(const Tensor& input, const Tensor& target, Weights... weights, int64_t reduction) {
    Call call(operands(input, target, weights...), reduction);
    return elementwise_loss(call);
  }

  static std::tuple<Tensor, Tensor> with_gradient(const Tensor& input, const Tensor& target, Weights... weights,
                                                  int64_t reduction, double grad_output) {
    Call call(operands(input, target, weights...), reduction);
    return elementwise_loss_with_gradient(call, grad_output);
  }

  static std::tuple<Tensor, Tensor> prepared(const Tensor& input, const Tensor& target, Weights... weights,
                                             int64_t reduction) {
    Call call(operands(input, target, weights...), reduction);
    if constexpr (Call::kPreparesGradients) {
      const CallKey key = key_of(kKey, operands(input, target, weights...), reduction);
      const std::optional<Tensor> ticket = call.reduction() != Reduction::None
                                               ? PreparedGradients::new_ticket({1}, ScalarType::Float, key)
                                               : std::nullopt;
      if (ticket.has_value()) {
        *static_cast<float*>(ticket->data_ptr()) = 0;
        const std::optional<double> expected = PreparedGradients::expected_grad_output(key);
        if (!expected.has_value()) return {elementwise_loss(call), *ticket};
        const auto [loss, gradient] = elementwise_loss_with_gradient(call, *expected);
        PreparedGradients::keep(*ticket, *expected, gradient);
        return {loss, *ticket};
      }
    }
    Tensor ticket = empty({1}, ScalarType::Float, input);
    return {elementwise_loss(call), torch::stable::zero_(ticket)};
  }

  static Tensor prepared_backward(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                                  Weights... weights, const Tensor& ticket, int64_t reduction) {
    if constexpr (Call::kPreparesGradients) {
      const CallKey key = key_of(kKey, operands(input, target, weights...), reduction);
      if (const std::optional<Tensor> gradient = PreparedGradients::take(ticket, key, grad_output)) return *gradient;
    }
    return backward(grad_output, input, target, weights..., reduction);
  }

  static Tensor backward(const Tensor& grad_output, const Tensor& input, const Tensor& target, Weights... weights,
                         int64_t reduction) {
    Call call(operands(input, target, weights...), reduction);
    return elementwise_loss_backward(call, grad_output);
  }

  // Whether it was written: not where the gradient has no place over the input.
  static bool backward_over_input(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                                  Weights... weights, int64_t reduction) {
    Call call(operands(input, target, weights...), reduction);
    call.use_grad_output(grad_output);
    if (!call.overwrite_input(input)) return false;
    call.params.mode = ElementwiseMode::Backward;
    call.run();
    return true;
  }

  static void implement(torch::stable::detail::StableLibrary& library, const std::string& name) {
    library.impl(name.c_str(), TORCH_BOX(&loss));
    library.impl((name + "_forward").c_str(), TORCH_BOX(&loss));
    library.impl((name + "_with_gradient").c_str(), TORCH_BOX(&with_gradient));
    library.impl((name + "_prepared").c_str(), TORCH_BOX(&prepared));
    library.impl((name + "_prepared_backward").c_str(), TORCH_BOX(&prepared_backward));
    library.impl((name + "_backward").c_str(), TORCH_BOX(&backward));
  }

 private:
  static inline const std::optional<Tensor> kNone;

  static ElementwiseOperands operands(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                                      const std::optional<Tensor>& pos_weight = kNone) {
    return {input, target, weight, pos_weight};
  }
};

template <class Call>
struct BinaryCrossEntropyOperators {
  static void implement(torch::stable::detail::StableLibrary& library) {
    WeightedLossOperators<Call, 'b', OptionalWeight>::implement(library, "binary_cross_entropy");
  }
};

template <class Call>
struct BinaryCrossEntropyWithLogitsOperators {
  static void implement(torch::stable::detail::StableLibrary& library) {
    using Operators = WeightedLossOperators<Call, 'l', OptionalWeight, OptionalWeight>;
    Operators::implement(library, "binary_cross_entropy_with_logits");
    library.impl("binary_cross_entropy_with_logits_backward_over_logits", TORCH_BOX(&Operators::backward_over_input));
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
    return elementwise_loss(call);
  }

  static Tensor backward(const Tensor& grad_output, const Tensor& logits, const Tensor& target, double alpha,
                         double gamma, int64_t reduction) {
    FocalCall call(logits, target, alpha, gamma, reduction);
    return elementwise_loss_backward(call, grad_output);
  }

  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("sigmoid_focal_loss", TORCH_BOX(&loss));
    library.impl("sigmoid_focal_loss_backward", TORCH_BOX(&backward));
  }
};

}  // namespace fused_losses
