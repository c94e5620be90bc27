#include "elementwise_problem.h"

#include <algorithm>

namespace fused_losses {
namespace {

BroadcastOperand broadcast_operand(const std::optional<Tensor>& operand, const std::vector<int64_t>& sizes,
                                   const std::vector<size_t>& order, ScalarType input_type, ScalarType target_type) {
  BroadcastOperand result;
  if (!operand.has_value()) return result;
  const ScalarType type = operand->scalar_type();
  if (type != input_type && type != target_type) refuse("the weight's type is neither the input's nor the target's");
  const int64_t num_dims = static_cast<int64_t>(sizes.size());
  const int64_t missing = num_dims - operand->dim();
  if (missing < 0) refuse("a weight may not enlarge the result");
  result.data = operand->data_ptr();
  result.dtype = to_dtype(type);
  for (const size_t dim : order) {
    const int64_t own_dim = static_cast<int64_t>(dim) - missing;
    const int64_t own_size = own_dim < 0 ? 1 : operand->size(own_dim);
    if (own_size != 1 && own_size != sizes[dim]) refuse("a weight does not broadcast to the input's shape");
    if (sizes[dim] == 1) continue;
    const int64_t stride = own_size == 1 ? 0 : operand->stride(own_dim);
    const int last = result.num_dims - 1;
    if (last >= 0 && result.strides[last] == stride * sizes[dim]) {
      result.sizes[last] *= sizes[dim];
      result.strides[last] = stride;
      continue;
    }
    if (result.num_dims == kMaxBroadcastDims) refuse("a weight has too many axes that do not merge");
    result.sizes[result.num_dims] = sizes[dim];
    result.strides[result.num_dims] = stride;
    ++result.num_dims;
  }
  if (result.num_dims == 0) {
    result.num_dims = 1;
    result.sizes[0] = 1;
  }
  return result;
}

}  // namespace

ElementwiseProblem::ElementwiseProblem(const ElementwiseOperands& operands, int64_t reduction)
    : reduction_(to_reduction(reduction)),
      input_(operands.input),
      target_(operands.target),
      sizes_(to_vector(operands.input.sizes())),
      strides_(dense_strides(sizes_, to_vector(operands.input.strides()))) {
  check_tensor(input_, input_);
  for (const std::optional<Tensor>& operand : {std::optional(target_), operands.weight, operands.pos_weight}) {
    if (operand.has_value()) check_tensor(*operand, input_);
  }
  if (to_vector(target_.sizes()) != sizes_) refuse("the target's shape is not the input's");
  const ScalarType type = input_.scalar_type();
  const ScalarType target_type = target_.scalar_type();
  params.dtype = to_dtype(type);
  params.target_dtype = to_dtype(target_type);
  if (type != target_type && !(is_16_bit(type) && target_type == ScalarType::Float)) {
    refuse("no kernel for these types of input and target");
  }
  params.num_elements = input_.numel();
  if (params.num_elements == 0) refuse("empty tensors have no kernel");
  input_ = at_strides(input_, strides_);
  target_ = at_strides(target_, strides_);
  params.input = input_.data_ptr();
  params.target = target_.data_ptr();
  const std::vector<size_t> order = storage_order(strides_);
  params.weight = broadcast_operand(operands.weight, sizes_, order, type, target_type);
  params.pos_weight = broadcast_operand(operands.pos_weight, sizes_, order, type, target_type);
  params.gradient_scale = 1.0 / denominator();
}

bool ElementwiseProblem::overwrite_input(const Tensor& input) {
  if (input_.data_ptr() != input.data_ptr()) return false;
  params.gradient = input.data_ptr();
  return true;
}

Tensor ElementwiseProblem::new_losses() {
  Tensor losses = empty_strided(sizes_, strides_, loss_type(), input_);
  params.losses = losses.data_ptr();
  return losses;
}

std::optional<Tensor> ElementwiseProblem::set_grad_output(const Tensor& grad_output) {
  check_grad_output(grad_output, input_, reduction_, params.num_elements);
  const std::vector<int64_t> strides = to_vector(grad_output.strides());
  // All strides are 0 in the backward of a sum.
  if (reduction_ != Reduction::None ||
      std::all_of(strides.begin(), strides.end(), [](int64_t stride) { return stride == 0; })) {
    return grad_output;
  }
  if (to_vector(grad_output.sizes()) != sizes_) refuse("grad_output does not fit the loss");
  grad_output_ = at_strides(cast(grad_output, loss_type()), strides_);
  params.grad_output = grad_output_->data_ptr();
  return std::nullopt;
}

}  // namespace fused_losses
