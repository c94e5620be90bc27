#include "nll_loss_problem.h"

#include "index_target.h"

namespace fused_losses {

NLLLossProblem::NLLLossProblem(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                               const NLLLossOptions& options)
    : options_(options),
      type_(input.scalar_type()),
      sizes_(to_vector(input.sizes())),
      shape_(class_shape(sizes_)),
      target_(target),
      input_(input) {
  check_tensor(input, input);
  check_tensor(target, input);
  set_target(weight);
  std::optional<PositionLayout> layout = position_layout(sizes_, shape_.class_dim, {to_vector(input.strides())});
  if (!layout.has_value()) {
    input_ = as_contiguous(input);
    layout = position_layout(sizes_, shape_.class_dim, {to_vector(input_->strides())});
  }
  params.input = input_->data_ptr();
  params.inner_size = layout->inner_size;
  params.input_layout = layout->layouts[0];
}

NLLLossProblem::NLLLossProblem(const Tensor& grad_output, const Tensor& target, const std::optional<Tensor>& weight,
                               const std::vector<int64_t>& input_sizes, ScalarType input_type,
                               const NLLLossOptions& options)
    : options_(options), type_(input_type), sizes_(input_sizes), shape_(class_shape(sizes_)), target_(target) {
  check_tensor(target, target);
  set_target(weight);
  check_grad_output(grad_output, target, options.reduction, shape_.num_positions);
  grad_output_ = as_contiguous(cast(grad_output, accumulation_type(type_)));
  params.grad_output = grad_output_->data_ptr();
  params.grad_output_stride = options.reduction == Reduction::None ? 1 : 0;
  params.inner_size = 1;
  for (size_t dim = 2; dim < sizes_.size(); ++dim) params.inner_size *= sizes_[dim];
}

Tensor NLLLossProblem::new_losses() {
  Tensor losses = empty(shape_.position_sizes, accumulation_type(type_), target_);
  params.losses = losses.data_ptr();
  return losses;
}

void NLLLossProblem::set_target(const std::optional<Tensor>& weight) {
  if (!is_index_type(target_.scalar_type())) refuse("targets must be class indices");
  if (to_vector(target_.sizes()) != shape_.position_sizes) refuse("the target's shape does not fit the input's");
  if (weight.has_value()) check_tensor(*weight, target_);
  target_ = as_contiguous(target_);
  class_weight_ = prepare_class_weight(weight, shape_.num_classes, type_, options_.promote);
  params.dtype = to_dtype(type_);
  params.num_classes = shape_.num_classes;
  params.num_positions = shape_.num_positions;
  params.gradient_scale = 1.0;
  params.target = to_index_target(target_, shape_.num_classes, options_.ignore_index, class_weight_);
}

}  // namespace fused_losses
