#include "token_statistics_problem.h"

#include <cmath>

#include "class_layout.h"
#include "index_target.h"

namespace fused_losses {
namespace {

constexpr int64_t kNumSaved = 4;  // m, S, S' and T

}  // namespace

TokenStatisticsProblem::TokenStatisticsProblem(const Tensor& logits, const Tensor& target,
                                               const TokenStatisticsOptions& options)
    : logits_(logits) {
  check_tensor(logits, logits);
  check_tensor(target, logits);
  const std::vector<int64_t> sizes = to_vector(logits.sizes());
  if (sizes.empty()) refuse("the logits need a class axis");
  position_sizes_.assign(sizes.begin(), sizes.end() - 1);
  if (to_vector(target.sizes()) != position_sizes_) refuse("the target's shape does not fit the logits'");
  if (logits.numel() == 0) refuse("empty tensors have no kernel");
  if (!std::isfinite(options.logit_scale) || options.logit_scale == 0) refuse("logit_scale must be finite and not 0");
  if (!std::isfinite(options.softcap) || options.softcap < 0) refuse("softcap must be finite and positive");
  params.dtype = to_dtype(logits.scalar_type());
  params.num_classes = sizes.back();
  params.num_positions = logits.numel() / params.num_classes;
  params.logit_scale = options.logit_scale;
  params.softcap = options.softcap;
  target_ = as_contiguous(target);
  params.target = to_index_target(target_, params.num_classes, options.ignore_index, std::nullopt);
  set_layout(sizes);
}

Tensor TokenStatisticsProblem::new_saved() const {
  return empty({kNumSaved, params.num_positions}, accumulation(), logits_);
}

void TokenStatisticsProblem::set_saved(const Tensor& saved) {
  check_tensor(saved, logits_);
  const std::vector<int64_t> expected{kNumSaved, params.num_positions};
  if (to_vector(saved.sizes()) != expected || saved.scalar_type() != accumulation()) {
    refuse("what was saved is not of this call");
  }
  saved_ = as_contiguous(saved);  // saved-tensor hooks may have changed the strides
  char* data = static_cast<char*>(saved_->data_ptr());
  const int64_t row_bytes = params.num_positions * static_cast<int64_t>(saved.element_size());
  params.row_max = data;
  params.row_sum = data + row_bytes;
  params.row_others = data + 2 * row_bytes;
  params.row_sum_times_x = data + 3 * row_bytes;
}

const void* TokenStatisticsProblem::gradient_of_result(const std::optional<Tensor>& gradient) {
  if (!gradient.has_value()) return nullptr;
  check_tensor(*gradient, logits_);
  if (to_vector(gradient->sizes()) != position_sizes_) refuse("a gradient does not fit its result");
  gradients_.push_back(as_contiguous(cast(*gradient, accumulation())));
  return gradients_.back().data_ptr();
}

void TokenStatisticsProblem::set_gradient(const Tensor& gradient) {
  params.gradient = gradient.data_ptr();
  params.gradient_layout.outer_stride = params.inner_size * params.num_classes;
  params.gradient_layout.class_stride = 1;
  params.gradient_layout.inner_stride = params.num_classes;
}

// Rows of contiguous classes at one or two strides, such as the shifted logits of a language model; others are copied.
void TokenStatisticsProblem::set_layout(const std::vector<int64_t>& sizes) {
  const int class_dim = static_cast<int>(sizes.size()) - 1;
  std::optional<PositionLayout> layout = position_layout(sizes, class_dim, {to_vector(logits_.strides())});
  if (!layout.has_value() || !layout->contiguous_classes) {
    logits_ = as_contiguous(logits_);
    layout = position_layout(sizes, class_dim, {to_vector(logits_.strides())});
  }
  params.logits = logits_.data_ptr();
  params.inner_size = layout->inner_size;
  params.logits_layout = layout->layouts.front();
}

}  // namespace fused_losses
