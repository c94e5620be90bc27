// The operators of cross-entropy on any device: how the variants are made of one call.
//
// Call is a backend's CrossEntropyProblem with
//   Tensor new_gradient()   uninitialised, and the parameters point to it
//   void run()              the kernels, for what the parameters ask for
//   Tensor run_to_loss()    the forward, and its losses reduced
//   kPreparesGradients      whether the gradient may wait for the backward
//   kRescalesGradients      whether the backward computes the forward's gradient anew in its place, with
//   void run_over(gradient)
#pragma once

#include <bit>
#include <tuple>

#include "cross_entropy_problem.h"
#include "prepared_gradients.h"

namespace fused_losses {

// The options are the arguments of CrossEntropyOptions::of, which every schema ends with.
template <class Call, class Options = decltype(CrossEntropyOptions::of)>
struct CrossEntropyOperators;

template <class Call, class... Options>
struct CrossEntropyOperators<Call, CrossEntropyOptions(Options...)> {
  static Tensor loss(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& class_weight,
                     Options... options) {
    Call call(logits, target, class_weight, CrossEntropyOptions::of(options...), false);
    call.params.mode = CrossEntropyMode::Loss;
    return call.run_to_loss();
  }

  static std::tuple<Tensor, Tensor> with_gradient(const Tensor& logits, const Tensor& target,
                                                  const std::optional<Tensor>& class_weight, double grad_output,
                                                  Options... options) {
    const auto asked = CrossEntropyOptions::of(options...);
    if (asked.reduction == Reduction::None) refuse("unreduced losses have a gradient only for a grad_output");
    Call call(logits, target, class_weight, asked, true);
    const Tensor gradient = call.new_gradient();
    call.params.mode = CrossEntropyMode::LossAndGradient;
    call.params.expected_grad_output = grad_output;
    Tensor loss = call.run_to_loss();
    return {loss, call.as_returned(gradient)};
  }

  static std::tuple<Tensor, Tensor> with_statistics(const Tensor& logits, const Tensor& target,
                                                    const std::optional<Tensor>& class_weight, Options... options) {
    return run_with_statistics(logits, target, class_weight, CrossEntropyOptions::of(options...));
  }

  // The gradient may wait for the backward with these statistics: see Note [Prepared gradients].
  static std::tuple<Tensor, Tensor> prepared(const Tensor& logits, const Tensor& target,
                                             const std::optional<Tensor>& class_weight, Options... options) {
    const auto asked = CrossEntropyOptions::of(options...);
    if constexpr (Call::kPreparesGradients) {
      if (asked.reduction != Reduction::None) return prepare(logits, target, class_weight, asked);
    }
    return run_with_statistics(logits, target, class_weight, asked);
  }

  static Tensor backward(const Tensor& grad_output, const Tensor& logits, const Tensor& target,
                         const std::optional<Tensor>& class_weight, const Tensor& statistics, Options... options) {
    const auto asked = CrossEntropyOptions::of(options...);
    if constexpr (Call::kPreparesGradients) {
      if (PreparedGradients::is_ticket(statistics)) {
        const CallKey key = key_of(logits, target, class_weight, asked);
        if (const auto gradient = PreparedGradients::take(statistics, key, grad_output)) return *gradient;
      }
    }
    Call call(logits, target, class_weight, asked, true);
    call.set_backward(grad_output, statistics);
    const Tensor gradient = call.new_gradient();
    call.run();
    return call.as_returned(gradient);
  }

  // Whether it was written: not where the gradient has no place over the logits.
  static bool backward_over_logits(const Tensor& grad_output, const Tensor& logits, const Tensor& target,
                                   const std::optional<Tensor>& class_weight, const Tensor& statistics,
                                   Options... options) {
    Call call(logits, target, class_weight, CrossEntropyOptions::of(options...), false);
    call.set_backward(grad_output, statistics);
    if (!call.overwrite_logits(logits)) return false;
    call.run();
    return true;
  }

  // A gradient that a forward prepared, for another grad_output.
  static void rescale_gradient(const Tensor& grad_output, const Tensor& gradient, double prepared_for,
                               const Tensor& logits, const Tensor& target, const std::optional<Tensor>& class_weight,
                               Options... options) {
    Call call(logits, target, class_weight, CrossEntropyOptions::of(options...), true);
    call.set_grad_output(grad_output);
    call.params.expected_grad_output = prepared_for;
    call.params.mode = CrossEntropyMode::LossAndGradient;
    call.run_over(gradient);
  }

  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("cross_entropy", TORCH_BOX(&loss));
    library.impl("cross_entropy_forward", TORCH_BOX(&loss));
    library.impl("cross_entropy_with_gradient", TORCH_BOX(&with_gradient));
    library.impl("cross_entropy_with_statistics", TORCH_BOX(&with_statistics));
    library.impl("cross_entropy_prepared", TORCH_BOX(&prepared));
    library.impl("cross_entropy_backward", TORCH_BOX(&backward));
    library.impl("cross_entropy_backward_over_logits", TORCH_BOX(&backward_over_logits));
    if constexpr (Call::kRescalesGradients)
      library.impl("cross_entropy_rescale_gradient", TORCH_BOX(&rescale_gradient));
  }

 private:
  static std::tuple<Tensor, Tensor> run_with_statistics(const Tensor& logits, const Tensor& target,
                                                        const std::optional<Tensor>& class_weight,
                                                        const CrossEntropyOptions& options) {
    // The layout is the backward's: a kernel need not leave statistics of ignored rows that another would read.
    Call call(logits, target, class_weight, options, true);
    call.params.mode = CrossEntropyMode::Loss;
    const Tensor statistics = call.new_statistics();
    return {call.run_to_loss(), statistics};
  }

  static std::tuple<Tensor, Tensor> prepare(const Tensor& logits, const Tensor& target,
                                            const std::optional<Tensor>& class_weight,
                                            const CrossEntropyOptions& options) {
    Call call(logits, target, class_weight, options, true);
    const CallKey key = key_of(logits, target, class_weight, options);
    const std::optional<Tensor> ticket =
        PreparedGradients::new_ticket({3, call.params.num_positions}, call.accumulation(), key);
    const Tensor statistics = ticket.has_value() ? *ticket : call.new_statistics();
    call.set_statistics(statistics);
    call.params.mode = CrossEntropyMode::Loss;
    const std::optional<double> expected = PreparedGradients::expected_grad_output(key);
    if (!ticket.has_value() || !expected.has_value()) return {call.run_to_loss(), statistics};
    const Tensor gradient = call.new_gradient();
    call.params.mode = CrossEntropyMode::LossAndGradient;
    call.params.expected_grad_output = *expected;
    const Tensor loss = call.run_to_loss();
    PreparedGradients::keep(statistics, *expected, call.as_returned(gradient));
    return {loss, statistics};
  }

  static CallKey key_of(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& class_weight,
                        const CrossEntropyOptions& options) {
    return {{&logits, &target, optional_operand(class_weight)},
            {'c', static_cast<int64_t>(options.reduction), options.ignore_index, bits(options.label_smoothing),
             options.promote, bits(options.logit_scale), bits(options.softcap), bits(options.lse_square_scale),
             bits(options.focal_gamma)}};
  }

  static int64_t bits(double value) { return std::bit_cast<int64_t>(value); }
};

}  // namespace fused_losses
