// fused_losses::token_statistics and its backward on the CPU. See core/token_statistics.h for the mathematics.
#include "../core/token_statistics.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "../cpu/capability.h"
#include "class_layout.h"
#include "cpu_target_check.h"
#include "cpu_tensors.h"
#include "index_target.h"
#include "parallel.h"

namespace fused_losses {
namespace {

constexpr int64_t kElementsPerBlock = 8192;
constexpr int64_t kElementsPerThread = 32768;  // no thread is woken for fewer
constexpr int64_t kNumSaved = 4;               // m, S, S' and T

// One call: the problem, its layout and its kernel.
class Call {
 public:
  Call(const Tensor& logits, const Tensor& target, double logit_scale, double softcap, int64_t ignore_index)
      : logits_(logits) {
    check_device(target, logits);
    const std::vector<int64_t> sizes = to_vector(logits.sizes());
    if (sizes.empty()) refuse("the logits need a class axis");
    position_sizes_.assign(sizes.begin(), sizes.end() - 1);
    if (to_vector(target.sizes()) != position_sizes_) refuse("the target's shape does not fit the logits'");
    if (logits.numel() == 0) refuse("empty tensors have no kernel");
    if (!std::isfinite(logit_scale) || logit_scale == 0) refuse("logit_scale must be finite and not 0");
    if (!std::isfinite(softcap) || softcap < 0) refuse("softcap must be finite and positive");
    params.dtype = to_dtype(logits.scalar_type());
    params.num_classes = sizes.back();
    params.num_positions = logits.numel() / params.num_classes;
    params.positions_per_block = std::max<int64_t>(1, kElementsPerBlock / params.num_classes);
    params.logit_scale = logit_scale;
    params.softcap = softcap;
    target_ = as_contiguous(target);
    params.target = to_index_target(target_, params.num_classes, ignore_index, std::nullopt);
    check_targets(params.target, params.num_positions);
    set_layout(sizes);
  }

  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  TokenStatisticsParams params{};

  ScalarType accumulation() const { return accumulation_type(logits_.scalar_type()); }

  Tensor new_result(ScalarType type) const { return empty(position_sizes_, type, logits_); }

  Tensor new_saved() const { return empty({kNumSaved, params.num_positions}, accumulation(), logits_); }

  void set_saved(const Tensor& saved) {
    const std::vector<int64_t> expected{kNumSaved, params.num_positions};
    if (to_vector(saved.sizes()) != expected || saved.scalar_type() != accumulation() || !saved.is_contiguous()) {
      refuse("what was saved is not of this call");
    }
    char* data = static_cast<char*>(saved.data_ptr());
    const int64_t row_bytes = params.num_positions * static_cast<int64_t>(saved.element_size());
    params.row_max = data;
    params.row_sum = data + row_bytes;
    params.row_others = data + 2 * row_bytes;
    params.row_sum_times_x = data + 3 * row_bytes;
  }

  // In the accumulation type, contiguous; absent ones are 0.
  const void* gradient_of_result(const std::optional<Tensor>& gradient) {
    if (!gradient.has_value()) return nullptr;
    if (to_vector(gradient->sizes()) != position_sizes_) refuse("a gradient does not fit its result");
    gradients_.push_back(as_contiguous(cast(*gradient, accumulation())));
    return gradients_.back().data_ptr();
  }

  Tensor new_gradient() {
    const std::vector<int64_t> sizes = to_vector(logits_.sizes());
    const Tensor gradient = empty_gradient(sizes, contiguous_strides(sizes), logits_.scalar_type(), logits_);
    params.gradient = gradient.data_ptr();
    params.gradient_layout.outer_stride = params.inner_size * params.num_classes;
    params.gradient_layout.class_stride = 1;
    params.gradient_layout.inner_stride = params.num_classes;
    return gradient;
  }

  void run() const {
    const auto kernel = cpu::kernels().token_statistics;
    const int64_t elements = params.positions_per_block * params.num_classes;
    for_each_block(
        blocks_of(params.num_positions, params.positions_per_block),
        [&](int64_t block_begin, int64_t block_end) { kernel(params, block_begin, block_end); },
        std::max<int64_t>(1, kElementsPerThread / elements));
  }

 private:
  // Rows of contiguous classes at one or two strides, such as the shifted logits of a language model; others are
  // copied.
  void set_layout(const std::vector<int64_t>& sizes) {
    const int class_dim = static_cast<int>(sizes.size()) - 1;
    std::optional<PositionLayout> layout = position_layout(sizes, class_dim, {to_vector(logits_.strides())});
    if (!layout.has_value() || !layout->contiguous_classes) {
      logits_ = torch::stable::contiguous(logits_);
      layout = position_layout(sizes, class_dim, {to_vector(logits_.strides())});
    }
    params.logits = logits_.data_ptr();
    params.inner_size = layout->inner_size;
    params.logits_layout = layout->layouts.front();
  }

  Tensor logits_;
  Tensor target_;
  std::vector<int64_t> position_sizes_;
  std::vector<Tensor> gradients_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> token_statistics(const Tensor& logits, const Tensor& target,
                                                                    double logit_scale, double softcap,
                                                                    int64_t ignore_index) {
  Call call(logits, target, logit_scale, softcap, ignore_index);
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

Tensor token_statistics_backward(const std::optional<Tensor>& grad_log_prob,
                                 const std::optional<Tensor>& grad_log_sum_exp,
                                 const std::optional<Tensor>& grad_entropy, const Tensor& logits, const Tensor& target,
                                 const Tensor& saved, double logit_scale, double softcap, int64_t ignore_index) {
  Call call(logits, target, logit_scale, softcap, ignore_index);
  call.set_saved(saved);
  call.params.grad_log_prob = call.gradient_of_result(grad_log_prob);
  call.params.grad_log_sum_exp = call.gradient_of_result(grad_log_sum_exp);
  call.params.grad_entropy = call.gradient_of_result(grad_entropy);
  const Tensor gradient = call.new_gradient();
  call.run();
  return gradient;
}

}  // namespace
}  // namespace fused_losses

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, library) {
  using namespace fused_losses;
  library.impl("token_statistics", TORCH_BOX(&token_statistics));
  library.impl("token_statistics_backward", TORCH_BOX(&token_statistics_backward));
}
