// The statistics of tokens and their gradient, against Note [Token statistics] of core/token_statistics.h in plain
// loops of doubles.
#pragma once

#include <algorithm>
#include <vector>

#include "targets.h"

namespace fused_losses::kernel_checks {

struct TokenCase {
  DType dtype;
  int64_t positions;
  int64_t classes;
  double logit_scale = 1;
  double softcap = 0;
  int64_t past_alignment = 0;  // of logits and gradient, elements
  int64_t gap = 0;             // elements between rows of logits
};

class TokenCheck {
 public:
  explicit TokenCheck(const TokenCase& test)
      : case_(test),
        accumulation_(accumulation_of(test.dtype)),
        row_(test.classes + test.gap),
        random_(static_cast<uint64_t>(test.positions * 1000 + test.classes)),
        logits_(format_of(test.dtype), test.positions * row_ - test.gap, test.past_alignment),
        targets_(random_, test.dtype, IndexType::Int32, test.positions, test.classes, false),
        saved_(format_of(accumulation_), 4 * test.positions, 1) {
    for (int64_t position = 0; position < test.positions; ++position) {
      for (int64_t c = 0; c < test.classes; ++c) {
        // Coarse, so that the largest stands in several places, and a row rises, so that it is met late.
        const double rise = static_cast<double>(4 * c / test.classes);
        logits_.set(position * row_ + c, std::round(random_.uniform(-2, 2) * 4) / 4 + rise);
      }
    }
  }

  void run() {
    char name[200];
    std::snprintf(name, sizeof name,
                  "%s token_statistics [%lld, %lld] scale=%g softcap=%g past alignment=%lld gap=%lld",
                  name_of(case_.dtype), static_cast<long long>(case_.positions), static_cast<long long>(case_.classes),
                  case_.logit_scale, case_.softcap, static_cast<long long>(case_.past_alignment),
                  static_cast<long long>(case_.gap));
    current_case = name;
    forward();
    backward();
  }

 private:
  // A row by its definitions.
  struct Row {
    std::vector<double> x;
    std::vector<double> log_p;
    double log_sum_exp = 0;
    double entropy = 0;
    int64_t argmax = 0;
  };

  double slope(double x) const {
    return case_.logit_scale * (case_.softcap == 0 ? 1 : 1 - x / case_.softcap * (x / case_.softcap));
  }

  Row expected(int64_t position) const {
    Row row;
    for (int64_t c = 0; c < case_.classes; ++c) {
      const double scaled = case_.logit_scale * logits_[position * row_ + c];
      row.x.push_back(case_.softcap == 0 ? scaled : case_.softcap * std::tanh(scaled / case_.softcap));
    }
    const auto largest = std::max_element(row.x.begin(), row.x.end());
    row.argmax = largest - row.x.begin();
    double sum = 0;
    for (const double x : row.x) sum += std::exp(x - *largest);
    row.log_sum_exp = *largest + std::log(sum);
    for (const double x : row.x) {
      row.log_p.push_back(x - row.log_sum_exp);
      row.entropy -= std::exp(row.log_p.back()) * row.log_p.back();
    }
    return row;
  }

  TokenStatisticsParams parameters() {
    TokenStatisticsParams result = {};
    result.dtype = case_.dtype;
    result.num_positions = case_.positions;
    result.inner_size = 1;
    result.num_classes = case_.classes;
    result.logits = logits_.data();
    result.logits_layout = {row_, 1, 1};
    result.target = targets_.parameters();
    result.logit_scale = case_.logit_scale;
    result.softcap = case_.softcap;
    const int64_t row_bytes = case_.positions * bytes_of(format_of(accumulation_));
    char* const data = static_cast<char*>(saved_.data());
    result.row_max = data;
    result.row_sum = data + row_bytes;
    result.row_others = data + 2 * row_bytes;
    result.row_sum_times_x = data + 3 * row_bytes;
    return result;
  }

  void forward() {
    const Format format = format_of(accumulation_);
    Array log_prob(format, case_.positions, 1);
    Array log_sum_exp(format, case_.positions, 1);
    Array entropy(format, case_.positions, 1);
    Array argmax(Format::Int64, case_.positions, 1);
    TokenStatisticsParams forward = parameters();
    forward.log_prob = log_prob.data();
    forward.log_sum_exp = log_sum_exp.data();
    forward.entropy = entropy.data();
    forward.argmax = static_cast<int64_t*>(argmax.data());
    cuda::token_statistics(forward, nullptr);
    const Tolerance tolerance = tolerance_of(accumulation_, 10);
    for (int64_t i = 0; i < case_.positions; ++i) {
      const Row row = expected(i);
      const double log_p = targets_.ignored(i) ? 0 : row.log_p[static_cast<size_t>(targets_.at(i))];
      expect_close("log_prob", i, log_prob[i], log_p, tolerance);
      expect_close("log_sum_exp", i, log_sum_exp[i], row.log_sum_exp, tolerance);
      expect_close("entropy", i, entropy[i], row.entropy, tolerance);
      expect_close("argmax", i, argmax[i], static_cast<double>(row.argmax), {0, 0});
      if (targets_.ignored(i)) continue;
      expect_close("sum of the others", i, saved_[2 * case_.positions + i], sum_beside(row, targets_.at(i)), tolerance);
    }
  }

  static double sum_beside(const Row& row, int64_t target) {
    double sum = 0;
    for (int64_t c = 0; c < static_cast<int64_t>(row.x.size()); ++c) {
      if (c != target) sum += std::exp(row.x[static_cast<size_t>(c)] - row.x[static_cast<size_t>(row.argmax)]);
    }
    return sum;
  }

  // The second row has no gradient of any of its results.
  void backward() {
    const Format format = format_of(accumulation_);
    Array grads[3] = {{format, case_.positions, 1}, {format, case_.positions, 1}, {format, case_.positions, 1}};
    for (Array& grad : grads) {
      random_.fill(grad, -1, 1);
      if (case_.positions > 1) grad.set(1, 0);
    }
    Array gradient(format_of(case_.dtype), case_.positions * case_.classes, case_.past_alignment);
    TokenStatisticsParams backward = parameters();
    backward.gradient = gradient.data();
    backward.gradient_layout = {case_.classes, 1, 1};
    backward.grad_log_prob = grads[0].data();
    backward.grad_log_sum_exp = grads[1].data();
    backward.grad_entropy = grads[2].data();
    cuda::token_statistics(backward, nullptr);
    for (int64_t i = 0; i < case_.positions; ++i) {
      const Row row = expected(i);
      for (int64_t c = 0; c < case_.classes; ++c) {
        const size_t k = static_cast<size_t>(c);
        const double p = std::exp(row.log_p[k]);
        const double for_log_prob = targets_.ignored(i) ? 0 : grads[0][i] * ((c == targets_.at(i) ? 1 : 0) - p);
        const double by_x = for_log_prob + grads[1][i] * p - grads[2][i] * p * (row.log_p[k] + row.entropy);
        const int64_t element = i * case_.classes + c;
        expect_close("gradient", element, gradient[element], by_x * slope(row.x[k]),
                     tolerance_of(case_.dtype, 10 * case_.logit_scale));
      }
    }
  }

  TokenCase case_;
  DType accumulation_;
  int64_t row_;
  Random random_;
  Array logits_;
  Targets targets_;
  Array saved_;
};

// Rows of a warp and of a block, round again, at every alignment.
inline void check_token_statistics(DType dtype) {
  const int64_t packet = packet_elements(dtype);
  const int64_t longest_of_a_warp = 257 * packet - 1;
  for (const int64_t classes : {int64_t{1}, packet - 1, packet, 3 * packet + 2, 100 * packet}) {
    TokenCheck({dtype, 17, classes}).run();
    TokenCheck({dtype, 17, classes, -1.5}).run();
    TokenCheck({dtype, 5, classes, 0.75, 3}).run();
  }
  for (const int64_t classes : {longest_of_a_warp, longest_of_a_warp + 1, 1030 * packet + 1}) {
    TokenCheck({dtype, 3, classes, 1, 0, 1}).run();
    TokenCheck({dtype, 3, classes, -0.5, 5, packet - 1}).run();
  }
  for (int64_t past = 0; past < 8; ++past) TokenCheck({dtype, 3, 5 * packet + past, 1, 0, past, past % 3}).run();
}

}  // namespace fused_losses::kernel_checks
