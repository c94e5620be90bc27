// The schemas of torch.ops.fused_losses, and the operator that shows the elementary functions to the tests.
//
// reduction is 0 (none), 1 (mean) or 2 (sum), as in torch.nn._reduction. `promote` asks for the loss in the
// accumulation type although the logits have 16 bits, and admits class weights of another type: what autocast does.
#include <torch/csrc/stable/library.h>

#include "../cpu/capability.h"
#include "tensors.h"

namespace fused_losses {
namespace {

Tensor elementary_function(const Tensor& input, int64_t function) {
  check_cpu(input);
  const ScalarType type = input.scalar_type();
  if (type != accumulation_type(type)) refuse("elementary functions take float32 and float64");
  if (function < 0 || function > 3) refuse("no such elementary function");
  const Tensor source = as_contiguous(input);
  Tensor result = empty(to_vector(source.sizes()), type);
  cpu::kernels().elementary_function(static_cast<cpu::ElementaryFunction>(function), to_dtype(type), source.data_ptr(),
                                     result.data_ptr(), source.numel());
  return result;
}

}  // namespace
}  // namespace fused_losses

// Each loss stands here twice. The operator under the loss's own name can be differentiated: Python registers its
// derivative, which costs every call a detour through Python. `*_forward` is the same kernel without that, for callers
// that see to the gradient themselves.
STABLE_TORCH_LIBRARY(fused_losses, library) {
  library.def(
      "cross_entropy(Tensor logits, Tensor target, Tensor? class_weight, int reduction, int ignore_index, "
      "float label_smoothing, bool promote) -> Tensor");
  library.def(
      "cross_entropy_forward(Tensor logits, Tensor target, Tensor? class_weight, int reduction, int ignore_index, "
      "float label_smoothing, bool promote) -> Tensor");
  library.def(
      "cross_entropy_with_gradient(Tensor logits, Tensor target, Tensor? class_weight, int reduction, "
      "int ignore_index, float label_smoothing, bool promote) -> (Tensor loss, Tensor gradient)");
  library.def(
      "cross_entropy_with_statistics(Tensor logits, Tensor target, Tensor? class_weight, int reduction, "
      "int ignore_index, float label_smoothing, bool promote) -> (Tensor loss, Tensor statistics)");
  library.def(
      "cross_entropy_backward(Tensor grad_output, Tensor logits, Tensor target, Tensor? class_weight, "
      "Tensor statistics, int reduction, int ignore_index, float label_smoothing, bool promote) -> Tensor");
  library.def(
      "cross_entropy_backward_over_logits(Tensor grad_output, Tensor(a!) logits, Tensor target, Tensor? class_weight, "
      "Tensor statistics, int reduction, int ignore_index, float label_smoothing, bool promote) -> ()");
  library.def(
      "nll_loss(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index, bool promote) -> Tensor");
  library.def(
      "nll_loss_forward(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index, bool promote) -> "
      "Tensor");
  library.def(
      "nll_loss_backward(Tensor grad_output, Tensor target, Tensor? weight, SymInt[] input_sizes, "
      "ScalarType input_type, int reduction, int ignore_index, bool promote) -> Tensor");
  library.def("binary_cross_entropy(Tensor input, Tensor target, Tensor? weight, int reduction) -> Tensor");
  library.def("binary_cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, int reduction) -> Tensor");
  library.def(
      "binary_cross_entropy_with_gradient(Tensor input, Tensor target, Tensor? weight, int reduction) "
      "-> (Tensor loss, Tensor gradient)");
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
      "Tensor? pos_weight, int reduction) -> (Tensor loss, Tensor gradient)");
  library.def(
      "binary_cross_entropy_with_logits_backward(Tensor grad_output, Tensor logits, Tensor target, Tensor? weight, "
      "Tensor? pos_weight, int reduction) -> Tensor");
  library.def(
      "binary_cross_entropy_with_logits_backward_over_logits(Tensor grad_output, Tensor(a!) logits, Tensor target, "
      "Tensor? weight, Tensor? pos_weight, int reduction) -> ()");
  library.def("elementary_function(Tensor input, int function) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, library) {
  library.impl("elementary_function", TORCH_BOX(&fused_losses::elementary_function));
}
