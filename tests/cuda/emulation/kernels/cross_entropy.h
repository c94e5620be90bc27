// Cross-entropy in every mode, against Note [Target mass] and Note [Terms of a row] of core/cross_entropy.h in plain
// loops of doubles.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "targets.h"

namespace fused_losses::kernel_checks {

struct CrossEntropyCase {
  DType dtype;
  int64_t outer;
  int64_t classes;
  int64_t inner = 1;
  bool contiguous_classes = true;  // else the inner axis is
  TargetKind kind = TargetKind::Index;
  bool weighted = false;
  double label_smoothing = 0;
  bool accumulated_probability = false;  // probabilities of the accumulation type
  IndexType index_type = IndexType::Int64;
  bool mean = true;
  int64_t logits_past_alignment = 0;  // elements
  int64_t gradient_past_alignment = 0;
  int64_t logits_gap = 0;  // elements between adjacent rows, or between adjacent inner axes
  int64_t gradient_gap = 0;
  int64_t outer_gap = 0;  // elements between the last inner axis of an outer index and the first of the next
  double logit_scale = 1;
  double softcap = 0;
  double lse_square_scale = 0;
  double focal_gamma = 0;

  int64_t positions() const { return outer * inner; }

  ClassLayout layout(int64_t gap) const {
    if (contiguous_classes) return {inner * (classes + gap), 1, classes + gap};
    return {classes * (inner + gap) + outer_gap, inner + gap, 1};
  }

  int64_t offset(const ClassLayout& layout, int64_t position, int64_t c) const {
    return layout.offset(position / inner, position % inner) + c * layout.class_stride;
  }

  int64_t extent(const ClassLayout& layout) const { return offset(layout, positions() - 1, classes - 1) + 1; }

  std::string name() const {
    constexpr const char* kKinds[] = {"index", "smoothed", "probability"};
    char text[400];
    std::snprintf(
        text, sizeof text,
        "%s cross_entropy [%lld, %lld, %lld] %s %s%s smoothing=%g past alignment=%lld,%lld gaps=%lld,%lld,%lld "
        "scale=%g softcap=%g z-loss=%g focal=%g",
        name_of(dtype), static_cast<long long>(outer), static_cast<long long>(classes), static_cast<long long>(inner),
        contiguous_classes ? "rows" : "inner", kKinds[static_cast<int>(kind)], weighted ? " weighted" : "",
        label_smoothing, static_cast<long long>(logits_past_alignment), static_cast<long long>(gradient_past_alignment),
        static_cast<long long>(logits_gap), static_cast<long long>(gradient_gap), static_cast<long long>(outer_gap),
        logit_scale, softcap, lse_square_scale, focal_gamma);
    return text;
  }
};

// The operands of one case, what is expected of it, and the runs of its modes.
class CrossEntropyCheck {
 public:
  explicit CrossEntropyCheck(const CrossEntropyCase& test)
      : case_(test),
        accumulation_(accumulation_of(test.dtype)),
        layout_(test.layout(test.logits_gap)),
        gradient_layout_(test.layout(test.gradient_gap)),
        random_(static_cast<uint64_t>(test.positions() * 1000 + test.classes)),
        logits_(format_of(test.dtype), test.extent(layout_), test.logits_past_alignment),
        probabilities_(format_of(test.accumulated_probability ? accumulation_ : test.dtype),
                       test.extent(test.layout(0))),
        targets_(random_, test.dtype, test.index_type, test.positions(), test.classes, test.weighted),
        row_max_(format_of(accumulation_), test.positions(), 1),
        row_sum_(format_of(accumulation_), test.positions(), 1),
        row_others_(format_of(accumulation_), test.positions(), 1),
        row_mass_(format_of(accumulation_), test.positions(), 1),
        class_weight_sum_(DType::Float64) {
    // The ends of a row are the tails of packets and of groups: they count most.
    for (int64_t position = 0; position < test.positions(); ++position) {
      for (int64_t c = 0; c < test.classes; ++c) {
        const bool at_an_end = c < 8 || c >= test.classes - 8;
        logits_.set(logit_offset(position, c), random_.uniform(-2, 2) + (at_an_end ? 2 : 0));
      }
    }
    random_.fill(probabilities_, 0, 2.0 / static_cast<double>(test.classes));
    set_parameters();
    compute_expected();
  }

  void run() {
    current_case = case_.name();
    forward();
    with_gradient();
    rescale_gradient();
    backward();
    backward_over_logits();
  }

 private:
  bool is_probability() const { return case_.kind == TargetKind::Probability; }
  int64_t logit_offset(int64_t position, int64_t c) const { return case_.offset(layout_, position, c); }

  void set_parameters() {
    parameters_ = {};
    parameters_.dtype = case_.dtype;
    parameters_.target_kind = case_.kind;
    parameters_.num_positions = case_.positions();
    parameters_.inner_size = case_.inner;
    parameters_.num_classes = case_.classes;
    parameters_.logits = logits_.data();
    parameters_.logits_layout = layout_;
    parameters_.gradient_layout = gradient_layout_;
    parameters_.label_smoothing = case_.label_smoothing;
    parameters_.gradient_scale = 1;
    parameters_.logit_scale = case_.logit_scale;
    parameters_.softcap = case_.softcap;
    parameters_.lse_square_scale = case_.lse_square_scale;
    parameters_.focal_gamma = case_.focal_gamma;
    parameters_.target = targets_.parameters();
    if (is_probability()) {
      parameters_.target.data = nullptr;
      parameters_.probability_target = probabilities_.data();
      parameters_.probability_dtype = case_.accumulated_probability ? accumulation_ : case_.dtype;
      parameters_.probability_layout = case_.layout(0);
    }
    if (case_.weighted && case_.kind == TargetKind::SmoothedIndex) {
      double* const sum = static_cast<double*>(class_weight_sum_.data());
      cuda::sum_class_weights(parameters_.target, sum, nullptr);
      expect_close("sum of the class weights", 0, *sum, targets_.weight_sum(), {1e-12, 0});
      parameters_.device_class_weight_sum = sum;
    }
  }

  // A row's mass at each class is its dense mass, and at the target class the point mass on top of it.
  double mass(int64_t position, int64_t c) const {
    const double uniform = case_.label_smoothing / static_cast<double>(case_.classes);
    const double keep = 1 - case_.label_smoothing;
    if (is_probability()) {
      const double probability = probabilities_[case_.offset(case_.layout(0), position, c)];
      return (keep * probability + uniform) * targets_.weight(c);
    }
    if (targets_.ignored(position)) return 0;
    const double point = targets_.at(position) == c ? keep : 0;
    return (point + (case_.kind == TargetKind::SmoothedIndex ? uniform : 0)) * targets_.weight(c);
  }

  double x(int64_t position, int64_t c) const {
    const double scaled = case_.logit_scale * logits_[logit_offset(position, c)];
    return case_.softcap == 0 ? scaled : case_.softcap * std::tanh(scaled / case_.softcap);
  }
  double x_by_logit(int64_t position, int64_t c) const {
    const double in_cap = case_.softcap == 0 ? 0 : x(position, c) / case_.softcap;
    return case_.logit_scale * (1 - in_cap * in_cap);
  }
  // What the kernels save of the largest x: see Note [Units] in cuda/cross_entropy_terms.cuh.
  double unit_of(double x) const { return x / (case_.softcap == 0 ? std::fabs(case_.logit_scale) : case_.softcap); }

  void compute_expected() {
    divisor_ = !case_.mean ? 1 : is_probability() ? static_cast<double>(case_.positions()) : targets_.denominator();
    gradients_.resize(static_cast<size_t>(case_.positions() * case_.classes));
    for (int64_t position = 0; position < case_.positions(); ++position) {
      double max = -INFINITY;
      for (int64_t c = 0; c < case_.classes; ++c) max = std::max(max, x(position, c));
      double sum = 0;
      double total_mass = 0;
      for (int64_t c = 0; c < case_.classes; ++c) {
        sum += std::exp(x(position, c) - max);
        total_mass += mass(position, c);
      }
      const double log_sum_exp = max + std::log(sum);
      double loss = 0;
      for (int64_t c = 0; c < case_.classes; ++c) loss -= mass(position, c) * (x(position, c) - log_sum_exp);
      // By the product rule: the derivative of the masses' loss times the focal factor, and the factor's own.
      const bool counts = is_probability() || !targets_.ignored(position);
      const bool has_focal_factor = counts && case_.focal_gamma != 0;
      const double p = has_focal_factor ? std::exp(x(position, targets_.at(position)) - log_sum_exp) : 0;
      const double factor = has_focal_factor ? std::pow(1 - p, case_.focal_gamma) : 1;
      const double slope = has_focal_factor ? -case_.focal_gamma * std::pow(1 - p, case_.focal_gamma - 1) * p : 0;
      for (int64_t c = 0; c < case_.classes; ++c) {
        const double p_c = std::exp(x(position, c) - log_sum_exp);
        double by_x = factor * (total_mass * p_c - mass(position, c));
        if (has_focal_factor) by_x += loss * slope * ((c == targets_.at(position) ? 1 : 0) - p_c);
        if (counts) by_x += 2 * case_.lse_square_scale * log_sum_exp * p_c;
        gradient(position, c) = by_x * x_by_logit(position, c);
      }
      loss *= factor;
      if (counts) loss += case_.lse_square_scale * log_sum_exp * log_sum_exp;
      losses_.push_back(loss);
      maxima_.push_back(unit_of(max));
      sums_.push_back(sum);
      masses_.push_back(total_mass);
      total_loss_ += loss;
    }
  }

  double& gradient(int64_t position, int64_t c) {
    return gradients_[static_cast<size_t>(position * case_.classes + c)];
  }

  // Every element that belongs to the gradient, times scale(position); and that nothing was written between them.
  template <class Scale>
  void check_gradient(const Array& got, const ClassLayout& layout, const Scale& scale) {
    std::vector<bool> belongs(static_cast<size_t>(got.count()));
    for (int64_t position = 0; position < case_.positions(); ++position) {
      for (int64_t c = 0; c < case_.classes; ++c) {
        const int64_t i = case_.offset(layout, position, c);
        const double factor = scale(position) / divisor_;
        belongs[static_cast<size_t>(i)] = true;
        expect_close("gradient", i, got[i], gradient(position, c) * factor, tolerance_of(case_.dtype, factor));
      }
    }
    for (int64_t i = 0; i < got.count(); ++i) {
      if (!belongs[static_cast<size_t>(i)]) expect(got.is_untouched(i), "a kernel wrote between rows");
    }
  }

  void set_statistics(CrossEntropyParams& parameters) {
    parameters.row_max = row_max_.data();
    parameters.row_sum = row_sum_.data();
    parameters.row_others = is_probability() ? nullptr : row_others_.data();
    parameters.row_mass = is_probability() ? row_mass_.data() : nullptr;
  }

  // What a mean divides a gradient by, from the device or from the host.
  void set_divisor(CrossEntropyParams& parameters, const Mean* mean) const {
    if (mean != nullptr) {
      parameters.device_gradient_scale = mean->inverse();
    } else {
      parameters.gradient_scale = 1 / divisor_;
    }
  }

  void forward() {
    Array losses(format_of(accumulation_), case_.positions(), 1);
    BlockLosses block_losses;
    CrossEntropyParams parameters = parameters_;
    parameters.mode = CrossEntropyMode::Loss;
    parameters.losses = losses.data();
    parameters.block_losses = block_losses.sums();
    set_statistics(parameters);
    const int64_t count = cuda::cross_entropy(parameters, nullptr);
    const Tolerance tolerance = tolerance_of(accumulation_, 10);
    block_losses.check(count, total_loss_, tolerance);
    for (int64_t i = 0; i < case_.positions(); ++i) {
      const size_t position = static_cast<size_t>(i);
      expect_close("loss", i, losses[i], losses_[position], tolerance);
      if (!is_probability() && targets_.ignored(i)) continue;  // its statistics may be anything
      const bool is_rounded = case_.logit_scale != 1 || case_.softcap != 0;
      expect_close("maximum", i, row_max_[i], maxima_[position], is_rounded ? tolerance : Tolerance{0, 0});
      expect_close("sum of exponentials", i, row_sum_[i], sums_[position], tolerance_of(accumulation_, 0));
      if (is_probability()) expect_close("mass", i, row_mass_[i], masses_[position], tolerance);
    }
  }

  void with_gradient() {
    Array result(format_of(case_.dtype), case_.extent(gradient_layout_), case_.gradient_past_alignment);
    BlockLosses block_losses;
    std::optional<Mean> mean;
    // Its thousand threads would make every barrier after it dearer to ThreadSanitizer.
    if (case_.mean && !is_probability() && !emulation::kThreadSanitizer) mean.emplace(targets_, case_.dtype);
    CrossEntropyParams parameters = parameters_;
    parameters.mode = CrossEntropyMode::LossAndGradient;
    parameters.gradient = result.data();
    parameters.block_losses = block_losses.sums();
    set_divisor(parameters, mean ? &*mean : nullptr);
    const int64_t count = cuda::cross_entropy(parameters, nullptr);
    block_losses.check(count, total_loss_, tolerance_of(accumulation_, 10));
    check_gradient(result, gradient_layout_, [](int64_t) { return 1.0; });
  }

  // A grad_output of 1 leaves the gradient as it is.
  void rescale_gradient() {
    Array result(format_of(case_.dtype), case_.extent(gradient_layout_), case_.gradient_past_alignment);
    CrossEntropyParams parameters = parameters_;
    parameters.mode = CrossEntropyMode::LossAndGradient;
    parameters.gradient = result.data();
    set_divisor(parameters, nullptr);
    const Scalar one(accumulation_, 1);
    parameters.grad_output = one.data();
    cuda::cross_entropy(parameters, nullptr);
    for (int64_t i = 0; i < result.count(); ++i) expect(result.is_untouched(i), "a gradient scaled by 1 was written");
    const Scalar grad_output(accumulation_, -0.75);
    parameters.grad_output = grad_output.data();
    cuda::cross_entropy(parameters, nullptr);
    check_gradient(result, gradient_layout_, [](int64_t) { return -0.75; });
  }

  // From the statistics of the forward, with a grad_output of each position.
  void backward() {
    Array result(format_of(case_.dtype), case_.extent(gradient_layout_), case_.gradient_past_alignment);
    Array grad_output(format_of(accumulation_), case_.positions(), 1);
    random_.fill(grad_output, -1, 1);
    CrossEntropyParams parameters = parameters_;
    parameters.mode = CrossEntropyMode::Backward;
    parameters.gradient = result.data();
    parameters.grad_output = grad_output.data();
    parameters.grad_output_stride = 1;
    set_statistics(parameters);
    set_divisor(parameters, nullptr);
    cuda::cross_entropy(parameters, nullptr);
    check_gradient(result, gradient_layout_, [&](int64_t position) { return grad_output[position]; });
  }

  // Last, as it overwrites the logits.
  void backward_over_logits() {
    const Scalar grad_output(accumulation_, 1.5);
    CrossEntropyParams parameters = parameters_;
    parameters.mode = CrossEntropyMode::Backward;
    parameters.gradient = logits_.data();
    parameters.gradient_layout = layout_;
    parameters.grad_output = grad_output.data();
    set_statistics(parameters);
    set_divisor(parameters, nullptr);
    cuda::cross_entropy(parameters, nullptr);
    check_gradient(logits_, layout_, [](int64_t) { return 1.5; });
  }

  CrossEntropyCase case_;
  DType accumulation_;
  ClassLayout layout_;
  ClassLayout gradient_layout_;
  Random random_;
  Array logits_;
  Array probabilities_;
  Targets targets_;
  Array row_max_;
  Array row_sum_;
  Array row_others_;
  Array row_mass_;
  Scalar class_weight_sum_;
  CrossEntropyParams parameters_;

  double divisor_ = 1;
  double total_loss_ = 0;
  std::vector<double> losses_;
  std::vector<double> maxima_;
  std::vector<double> sums_;
  std::vector<double> masses_;
  std::vector<double> gradients_;  // [positions, classes] of the sum of the losses
};

}  // namespace fused_losses::kernel_checks
