// The schemas of torch.ops.fused_losses, for every device.
//
// reduction is 0 (none), 1 (mean) or 2 (sum), as in torch.nn._reduction. `promote` asks for the loss in the
// accumulation type although the logits have 16 bits, and admits class weights of another type: what autocast does.
//
// `*_prepared` is the forward of a compiled graph: the gradient may wait for the backward with these statistics or this
// ticket, see Note [Prepared gradients].
//
// `*_with_gradient` makes the gradient for `grad_output`, with the bits that `*_backward` has for that number, and for
// reduction 0 with an expanded one (a sum) too: which of them made a gradient cannot be told.
#pragma once

#include <torch/csrc/stable/library.h>

// See Note [Terms of a row] in core/cross_entropy.h. `softcap` 0 is none.
#define TERMS_OF_A_ROW ", float logit_scale=1.0, float softcap=0.0, float lse_square_scale=0.0, float focal_gamma=0.0"
#define CROSS_ENTROPY_ARGUMENTS                                                                                      \
  "(Tensor logits, Tensor target, Tensor? class_weight, int reduction, SymInt ignore_index, float label_smoothing, " \
  "bool promote" TERMS_OF_A_ROW

namespace fused_losses {

// Each loss stands here twice. The operator under the loss's own name can be differentiated: Python registers its
// derivative, which costs every call a detour through Python. `*_forward` is the same kernel without that, for callers
// that see to the gradient themselves.
inline void define_schemas(torch::stable::detail::StableLibrary& library) {
  library.def("cross_entropy" CROSS_ENTROPY_ARGUMENTS ") -> Tensor");
  library.def("cross_entropy_forward" CROSS_ENTROPY_ARGUMENTS ") -> Tensor");
  library.def(
      "cross_entropy_with_gradient(Tensor logits, Tensor target, Tensor? class_weight, float grad_output, "
      "int reduction, SymInt ignore_index, float label_smoothing, bool promote" TERMS_OF_A_ROW
      ") -> (Tensor loss, Tensor gradient)");
  library.def("cross_entropy_with_statistics" CROSS_ENTROPY_ARGUMENTS ") -> (Tensor loss, Tensor statistics)");
  library.def("cross_entropy_prepared" CROSS_ENTROPY_ARGUMENTS ") -> (Tensor loss, Tensor statistics)");
  library.def(
      "cross_entropy_backward(Tensor grad_output, Tensor logits, Tensor target, Tensor? class_weight, "
      "Tensor statistics, int reduction, SymInt ignore_index, float label_smoothing, bool promote" TERMS_OF_A_ROW
      ") -> Tensor");
  library.def(
      "cross_entropy_backward_over_logits(Tensor grad_output, Tensor(a!) logits, Tensor target, Tensor? class_weight, "
      "Tensor statistics, int reduction, SymInt ignore_index, float label_smoothing, bool promote" TERMS_OF_A_ROW
      ") -> bool");
  library.def(
      "nll_loss(Tensor input, Tensor target, Tensor? weight, int reduction, SymInt ignore_index, bool promote) -> "
      "Tensor");
  library.def(
      "nll_loss_forward(Tensor input, Tensor target, Tensor? weight, int reduction, SymInt ignore_index, "
      "bool promote) -> Tensor");
  library.def(
      "nll_loss_backward(Tensor grad_output, Tensor target, Tensor? weight, SymInt[] input_sizes, "
      "ScalarType input_type, int reduction, SymInt ignore_index, bool promote) -> Tensor");
  library.def("binary_cross_entropy(Tensor input, Tensor target, Tensor? weight, int reduction) -> Tensor");
  library.def("binary_cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, int reduction) -> Tensor");
  library.def(
      "binary_cross_entropy_with_gradient(Tensor input, Tensor target, Tensor? weight, int reduction, "
      "float grad_output=1.0) -> (Tensor loss, Tensor gradient)");
  library.def(
      "binary_cross_entropy_prepared(Tensor input, Tensor target, Tensor? weight, int reduction) -> (Tensor loss, "
      "Tensor ticket)");
  library.def(
      "binary_cross_entropy_prepared_backward(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, "
      "Tensor ticket, int reduction) -> Tensor");
  library.def(
      "binary_cross_entropy_backward(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, int reduction) "
      "-> Tensor");
  library.def(
      "binary_cross_entropy_with_logits(Tensor logits, Tensor target, Tensor? weight, Tensor? pos_weight, "
      "int reduction) -> Tensor");
  library.def(
      "binary_cross_entropy_with_logits_forward(Tensor logits, Tensor target, Tensor? weight, Tensor? pos_weight, "
      "int reduction) -> Tensor");
  library.def(
      "binary_cross_entropy_with_logits_with_gradient(Tensor logits, Tensor target, Tensor? weight, "
      "Tensor? pos_weight, int reduction, float grad_output=1.0) -> (Tensor loss, Tensor gradient)");
  library.def(
      "binary_cross_entropy_with_logits_prepared(Tensor logits, Tensor target, Tensor? weight, Tensor? pos_weight, "
      "int reduction) -> (Tensor loss, Tensor ticket)");
  library.def(
      "binary_cross_entropy_with_logits_prepared_backward(Tensor grad_output, Tensor logits, Tensor target, "
      "Tensor? weight, Tensor? pos_weight, Tensor ticket, int reduction) -> Tensor");
  library.def(
      "binary_cross_entropy_with_logits_backward(Tensor grad_output, Tensor logits, Tensor target, Tensor? weight, "
      "Tensor? pos_weight, int reduction) -> Tensor");
  library.def(
      "binary_cross_entropy_with_logits_backward_over_logits(Tensor grad_output, Tensor(a!) logits, Tensor target, "
      "Tensor? weight, Tensor? pos_weight, int reduction) -> bool");
  // `softcap` 0 is none. `saved` is for the backward: the rows' m, S, S' and T of Note [Token statistics].
  library.def(
      "token_statistics(Tensor logits, Tensor target, float logit_scale, float softcap, SymInt ignore_index) -> "
      "(Tensor "
      "log_prob, Tensor log_sum_exp, Tensor entropy, Tensor argmax, Tensor saved)");
  library.def(
      "token_statistics_backward(Tensor? grad_log_prob, Tensor? grad_log_sum_exp, Tensor? grad_entropy, Tensor logits, "
      "Tensor target, Tensor saved, float logit_scale, float softcap, SymInt ignore_index) -> Tensor");
  // `alpha` -1 is none.
  library.def("sigmoid_focal_loss(Tensor logits, Tensor target, float alpha, float gamma, int reduction) -> Tensor");
  library.def(
      "sigmoid_focal_loss_backward(Tensor grad_output, Tensor logits, Tensor target, float alpha, float gamma, "
      "int reduction) -> Tensor");
  // What a device that the host does not wait for needs besides: `gradient` is that of this call for grad_output =
  // `prepared_for`; it becomes that of the given one, rounded once.
  library.def(
      "cross_entropy_rescale_gradient(Tensor grad_output, Tensor(a!) gradient, float prepared_for, Tensor logits, "
      "Tensor target, Tensor? class_weight, int reduction, SymInt ignore_index, float label_smoothing, bool "
      "promote" TERMS_OF_A_ROW ") -> ()");
  library.def(
      "binary_cross_entropy_rescale_gradient(Tensor grad_output, Tensor(a!) gradient, float prepared_for, "
      "Tensor input, Tensor target, Tensor? weight, int reduction) -> ()");
  library.def(
      "binary_cross_entropy_with_logits_rescale_gradient(Tensor grad_output, Tensor(a!) gradient, "
      "float prepared_for, Tensor logits, Tensor target, Tensor? weight, Tensor? pos_weight, int reduction) -> ()");
  library.def("elementary_function(Tensor input, int function) -> Tensor");
}

}  // namespace fused_losses

#undef CROSS_ENTROPY_ARGUMENTS
#undef TERMS_OF_A_ROW
