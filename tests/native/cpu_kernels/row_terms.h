// Cross-entropy of class indices with the terms of Note [Terms of a row] in core/cross_entropy.h, from their
// definitions.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/emulation/kernels/cross_entropy.h"

namespace fused_losses::kernel_checks {

struct RowTerms {
  double logit_scale;
  double softcap;
  double lse_square_scale;
  double focal_gamma;
};

class RowTermsCheck {
 public:
  RowTermsCheck(const CrossEntropyCase& test, const RowTerms& terms)
      : case_(test),
        terms_(terms),
        accumulation_(accumulation_of(test.dtype)),
        layout_(test.layout(0)),
        random_(static_cast<uint64_t>(test.positions() * 100 + test.classes)),
        logits_(format_of(test.dtype), test.extent(layout_)),
        targets_(random_, test.dtype, IndexType::Int64, test.positions(), test.classes, test.weighted),
        statistics_{{format_of(accumulation_), test.positions()},
                    {format_of(accumulation_), test.positions()},
                    {format_of(accumulation_), test.positions()}} {
    random_.fill(logits_, -4, 4);
    for (int64_t position = 0; position < test.positions(); ++position) expect_row(position);
  }

  void run() {
    char text[120];
    std::snprintf(text, sizeof text, " scale=%g softcap=%g z=%g focal=%g", terms_.logit_scale, terms_.softcap,
                  terms_.lse_square_scale, terms_.focal_gamma);
    current_case = case_.name() + text;
    CrossEntropyParams forward = parameters(CrossEntropyMode::Loss);
    Array losses(format_of(accumulation_), case_.positions());
    forward.losses = losses.data();
    cuda::cross_entropy(forward, nullptr);
    for (int64_t i = 0; i < case_.positions(); ++i) {
      expect_close("loss", i, losses[i], losses_[static_cast<size_t>(i)], tolerance_of(accumulation_, 10));
    }
    Array gradient(format_of(case_.dtype), logits_.count());
    CrossEntropyParams both = parameters(CrossEntropyMode::LossAndGradient);
    both.gradient = gradient.data();
    cuda::cross_entropy(both, nullptr);
    check(gradient, [](int64_t) { return 1.0; });

    Array grad_output(format_of(accumulation_), case_.positions());
    random_.fill(grad_output, -1, 1);
    Array later(format_of(case_.dtype), logits_.count());
    CrossEntropyParams backward = parameters(CrossEntropyMode::Backward);
    backward.gradient = later.data();
    backward.grad_output = grad_output.data();
    backward.grad_output_stride = 1;
    cuda::cross_entropy(backward, nullptr);
    check(later, [&](int64_t position) { return grad_output[position]; });
  }

 private:
  CrossEntropyParams parameters(CrossEntropyMode mode) {
    CrossEntropyParams result = {};
    result.dtype = case_.dtype;
    result.target_kind = TargetKind::Index;
    result.mode = mode;
    result.num_positions = case_.positions();
    result.inner_size = case_.inner;
    result.num_classes = case_.classes;
    result.logits = logits_.data();
    result.logits_layout = result.gradient_layout = layout_;
    result.target = targets_.parameters();
    result.logit_scale = terms_.logit_scale;
    result.softcap = terms_.softcap;
    result.lse_square_scale = terms_.lse_square_scale;
    result.focal_gamma = terms_.focal_gamma;
    result.gradient_scale = 1;
    result.row_max = statistics_[0].data();
    result.row_sum = statistics_[1].data();
    result.row_others = statistics_[2].data();
    return result;
  }

  void expect_row(int64_t position) {
    std::vector<double> x;
    std::vector<double> slopes;
    for (int64_t c = 0; c < case_.classes; ++c) {
      const double scaled = terms_.logit_scale * logits_[case_.offset(layout_, position, c)];
      const double tangent = terms_.softcap == 0 ? 0 : std::tanh(scaled / terms_.softcap);
      x.push_back(terms_.softcap == 0 ? scaled : terms_.softcap * tangent);
      slopes.push_back(terms_.logit_scale * (1 - tangent * tangent));
    }
    const double largest = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (const double value : x) sum += std::exp(value - largest);
    const double log_sum_exp = largest + std::log(sum);
    const bool ignored = targets_.ignored(position);
    const size_t target = ignored ? 0 : static_cast<size_t>(targets_.at(position));
    const double weight = ignored ? 0 : targets_.weight(static_cast<int64_t>(target));
    const double log_p = x[target] - log_sum_exp;
    const double left = -std::expm1(log_p);  // 1 - p of the target
    const double modulation = std::pow(left, terms_.focal_gamma);
    const double z = ignored ? 0 : terms_.lse_square_scale;
    losses_.push_back(-weight * modulation * log_p + z * log_sum_exp * log_sum_exp);
    // d(-(1 - p)^gamma log p) / d(log p)
    const double by_log_p =
        -modulation + terms_.focal_gamma * std::pow(left, terms_.focal_gamma - 1) * std::exp(log_p) * log_p;
    for (size_t c = 0; c < x.size(); ++c) {
      const double p = std::exp(x[c] - log_sum_exp);
      const double by_x = weight * by_log_p * ((c == target ? 1 : 0) - p) + 2 * z * log_sum_exp * p;
      gradients_.push_back(by_x * slopes[c]);
    }
  }

  template <class Scale>
  void check(const Array& got, const Scale& scale) const {
    for (int64_t position = 0; position < case_.positions(); ++position) {
      for (int64_t c = 0; c < case_.classes; ++c) {
        const int64_t i = case_.offset(layout_, position, c);
        const double expected = gradients_[static_cast<size_t>(position * case_.classes + c)] * scale(position);
        expect_close("gradient", i, got[i], expected, tolerance_of(case_.dtype, 10 * scale(position)));
      }
    }
  }

  CrossEntropyCase case_;
  RowTerms terms_;
  DType accumulation_;
  ClassLayout layout_;
  Random random_;
  Array logits_;
  Targets targets_;
  Array statistics_[3];
  std::vector<double> losses_;
  std::vector<double> gradients_;
};

// Every term alone and all of them, in each layout.
inline void check_row_terms(DType dtype) {
  const RowTerms terms[] = {{0.7, 0, 0, 0},  {-1.5, 0, 0, 0}, {1, 3, 0, 0},   {-0.8, 5, 0, 0},
                            {1, 0, 1e-3, 0}, {1, 0, 0, 2},    {1, 0, 0, 0.5}, {0.9, 4, 1e-2, 1.5}};
  for (const RowTerms& each : terms) {
    for (const int64_t classes : {7, 65, 515, 2051}) {
      CrossEntropyCase rows{dtype, 5, classes};
      rows.weighted = classes == 65;
      RowTermsCheck(rows, each).run();
    }
    CrossEntropyCase inner{dtype, 2, 9, 131, false};
    inner.weighted = true;
    RowTermsCheck(inner, each).run();
  }
}

}  // namespace fused_losses::kernel_checks
