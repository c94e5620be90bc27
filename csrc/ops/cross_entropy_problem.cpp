#include "cross_entropy_problem.h"

#include <cmath>

#include "index_target.h"

namespace fused_losses {

CrossEntropyProblem::CrossEntropyProblem(const Tensor& logits, const Tensor& target,
                                         const std::optional<Tensor>& class_weight, const CrossEntropyOptions& options,
                                         bool wants_gradient)
    : options_(options),
      sizes_(to_vector(logits.sizes())),
      shape_(class_shape(sizes_)),
      logits_(logits),
      target_(target) {
  check_tensor(logits, logits);
  check_tensor(target, logits);
  if (class_weight.has_value()) check_tensor(*class_weight, logits);
  if (!(options.label_smoothing >= 0.0 && options.label_smoothing <= 1.0)) refuse("label_smoothing not in [0, 1]");
  params.dtype = to_dtype(logits.scalar_type());
  params.num_classes = shape_.num_classes;
  params.num_positions = shape_.num_positions;
  params.label_smoothing = options.label_smoothing;
  params.class_weight_sum = static_cast<double>(shape_.num_classes);
  params.gradient_scale = 1.0;
  class_weight_ = prepare_class_weight(class_weight, shape_.num_classes, logits.scalar_type(), options.promote);
  set_target(target);
  set_layout(wants_gradient);
  check_terms();
  params.logit_scale = options.logit_scale;
  params.lse_square_scale = options.lse_square_scale;
  params.focal_gamma = options.focal_gamma;
}

ScalarType CrossEntropyProblem::loss_type() const {
  if (options_.promote || (is_probability() && target_.scalar_type() != logits_.scalar_type())) return accumulation();
  return logits_.scalar_type();
}

bool CrossEntropyProblem::overwrite_logits(const Tensor& logits) {
  if (logits_.data_ptr() != logits.data_ptr() || overlaps(sizes_, to_vector(logits.strides()))) return false;
  params.gradient = logits.data_ptr();
  params.gradient_layout = params.logits_layout;
  return true;
}

Tensor CrossEntropyProblem::new_losses() {
  Tensor losses = empty(shape_.position_sizes, accumulation(), logits_);
  params.losses = losses.data_ptr();
  return losses;
}

Tensor CrossEntropyProblem::new_statistics() {
  Tensor statistics = empty({3, params.num_positions}, accumulation(), logits_);
  set_statistics(statistics);
  return statistics;
}

void CrossEntropyProblem::set_statistics(const Tensor& statistics) {
  check_tensor(statistics, logits_);
  const std::vector<int64_t> expected{3, params.num_positions};
  if (to_vector(statistics.sizes()) != expected || statistics.scalar_type() != accumulation()) {
    refuse("statistics are not those of this call");
  }
  statistics_ = as_contiguous(statistics);  // saved-tensor hooks may have changed the strides
  char* data = static_cast<char*>(statistics_->data_ptr());
  const int64_t row_bytes = params.num_positions * static_cast<int64_t>(statistics.element_size());
  params.row_max = data;
  params.row_sum = data + row_bytes;
  (is_probability() ? params.row_mass : params.row_others) = data + 2 * row_bytes;
}

void CrossEntropyProblem::set_backward(const Tensor& grad_output, const Tensor& statistics) {
  set_statistics(statistics);
  set_grad_output(grad_output);
  params.mode = CrossEntropyMode::Backward;
}

void CrossEntropyProblem::set_grad_output(const Tensor& grad_output) {
  check_grad_output(grad_output, logits_, options_.reduction, params.num_positions);
  grad_output_ = as_contiguous(cast(grad_output, accumulation()));
  params.grad_output = grad_output_->data_ptr();
  params.grad_output_stride = options_.reduction == Reduction::None ? 1 : 0;
}

void CrossEntropyProblem::check_terms() const {
  const CrossEntropyOptions& o = options_;
  if (!std::isfinite(o.logit_scale) || o.logit_scale == 0) refuse("logit_scale must be finite and not 0");
  if (!std::isfinite(o.softcap) || o.softcap < 0) refuse("softcap must be finite and positive");
  if (!std::isfinite(o.lse_square_scale)) refuse("lse_square_scale must be finite");
  if (!std::isfinite(o.focal_gamma) || o.focal_gamma < 0) refuse("focal_gamma must be finite and not negative");
  if (o.focal_gamma != 0 && params.target_kind != TargetKind::Index) {
    refuse("the focal loss has class indices without label smoothing");
  }
}

void CrossEntropyProblem::set_target(const Tensor& target) {
  const std::vector<int64_t> target_sizes = to_vector(target.sizes());
  if (is_float_type(target.scalar_type()) && target_sizes == sizes_) {
    const bool same_type = target.scalar_type() == logits_.scalar_type();
    if (!same_type && !(is_16_bit(logits_.scalar_type()) && target.scalar_type() == ScalarType::Float)) {
      refuse("no kernel for these types of logits and probabilities");
    }
    if (options_.ignore_index >= 0) refuse("ignore_index is for class indices");
    params.target_kind = TargetKind::Probability;
    params.probability_dtype = to_dtype(target.scalar_type());
    if (class_weight_.has_value()) params.target.class_weight = class_weight_->data_ptr();
    return;
  }
  if (!is_index_type(target.scalar_type())) refuse("targets must be class indices or probabilities");
  if (target_sizes != shape_.position_sizes) refuse("the target's shape does not fit the input's");
  params.target_kind = options_.label_smoothing > 0 ? TargetKind::SmoothedIndex : TargetKind::Index;
  target_ = as_contiguous(target);
  params.target = to_index_target(target_, shape_.num_classes, options_.ignore_index, class_weight_);
}

// What no kernel can walk is copied: to the strides of the gradient where they can walk these, else it is made
// contiguous.
void CrossEntropyProblem::set_layout(bool wants_gradient) {
  const std::vector<int64_t> strides = to_vector(logits_.strides());
  returned_strides_ = dense_strides(sizes_, strides);
  gradient_strides_ = wants_gradient ? returned_strides_ : strides;
  std::optional<PositionLayout> layout = try_layout();
  if (!layout.has_value()) layout = copied_layout(returned_strides_);
  if (!layout.has_value()) layout = copied_layout(contiguous_strides(sizes_));
  params.logits = logits_.data_ptr();
  params.inner_size = layout->inner_size;
  params.logits_layout = layout->layouts[0];
  params.gradient_layout = layout->layouts[1];
  if (is_probability()) {
    params.probability_target = target_.data_ptr();
    params.probability_layout = layout->layouts[2];
  }
  contiguous_classes_ = layout->contiguous_classes;
  if (!contiguous_classes_ && params.num_classes > INT32_MAX) refuse("2^31 classes and more along a strided axis");
}

std::optional<PositionLayout> CrossEntropyProblem::copied_layout(const std::vector<int64_t>& strides) {
  logits_ = at_strides(logits_, strides);
  if (is_probability()) target_ = at_strides(target_, strides);
  gradient_strides_ = strides;
  return try_layout();
}

std::optional<PositionLayout> CrossEntropyProblem::try_layout() const {
  std::vector<std::vector<int64_t>> strides{to_vector(logits_.strides()), gradient_strides_};
  if (is_probability()) strides.push_back(to_vector(target_.strides()));
  return position_layout(sizes_, shape_.class_dim, strides);
}

}  // namespace fused_losses
