// The operators of the statistics of tokens on any device, made of one call.
//
// Call is a backend's TokenStatisticsProblem, made of the logits, the target and the options, with
//   Tensor new_gradient()  uninitialised, and the parameters point to it
//   void run()             the kernels, for what the parameters ask for
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "token_statistics_problem.h"

namespace fused_losses {

template <class Call>
struct TokenStatisticsOperators {
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor& logits, const Tensor& target,
                                                                    double logit_scale, double softcap,
                                                                    int64_t ignore_index) {
    Call call(logits, target, {logit_scale, softcap, ignore_index});
    const Tensor log_prob = call.new_result(call.accumulation());
    const Tensor log_sum_exp = call.new_result(call.accumulation());
    const Tensor entropy = call.new_result(call.accumulation());
    const Tensor argmax = call.new_result(ScalarType::Long);
    const Tensor saved = call.new_saved();
    call.params.log_prob = log_prob.data_ptr();
    call.params.log_sum_exp = log_sum_exp.data_ptr();
    call.params.entropy = entropy.data_ptr();
    call.params.argmax = static_cast<int64_t*>(argmax.data_ptr());
    call.set_saved(saved);
    call.run();
    return {log_prob, log_sum_exp, entropy, argmax, saved};
  }

  static Tensor backward(const std::optional<Tensor>& grad_log_prob, const std::optional<Tensor>& grad_log_sum_exp,
                         const std::optional<Tensor>& grad_entropy, const Tensor& logits, const Tensor& target,
                         const Tensor& saved, double logit_scale, double softcap, int64_t ignore_index) {
    Call call(logits, target, {logit_scale, softcap, ignore_index});
    call.set_saved(saved);
    call.params.grad_log_prob = call.gradient_of_result(grad_log_prob);
    call.params.grad_log_sum_exp = call.gradient_of_result(grad_log_sum_exp);
    call.params.grad_entropy = call.gradient_of_result(grad_entropy);
    const Tensor gradient = call.new_gradient();
    call.run();
    return gradient;
  }

  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("token_statistics", TORCH_BOX(&forward));
    library.impl("token_statistics_backward", TORCH_BOX(&backward));
  }
};

}  // namespace fused_losses
