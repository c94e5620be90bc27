// A target that is no class, or a probability that is none, ends the launch before anything is read by it.
#pragma once

#include <stdexcept>
#include <string>

#include "targets.h"

namespace fused_losses::kernel_checks {

template <class Launch>
void expect_refusal(const char* name, const Launch& launch) {
  current_case = name;
  std::string message;
  try {
    launch();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  expect(message.starts_with("CUDA error: device-side assert triggered"), "an invalid target was not refused");
}

inline void check_refused_targets(DType dtype, int64_t invalid) {
  constexpr int64_t kPositions = 5;
  constexpr int64_t kClasses = 8;
  Random random(17);
  Targets targets(random, dtype, IndexType::Int64, kPositions, kClasses, true);
  targets.set(2, invalid);
  Array logits(format_of(dtype), kPositions * kClasses);
  Array gradient(format_of(dtype), kPositions * kClasses);
  Array statistics(format_of(accumulation_of(dtype)), kPositions);
  const Scalar grad_output(accumulation_of(dtype), 1);
  random.fill(logits, -1, 0);
  random.fill(statistics, 1, 2);

  CrossEntropyParams rows = {};
  rows.dtype = dtype;
  rows.num_positions = kPositions;
  rows.inner_size = 1;
  rows.num_classes = kClasses;
  rows.logits = logits.data();
  rows.logits_layout = rows.gradient_layout = {kClasses, 1, 1};
  rows.gradient = gradient.data();
  rows.gradient_scale = 1;
  rows.target = targets.parameters();
  rows.mode = CrossEntropyMode::LossAndGradient;
  expect_refusal("cross_entropy in registers", [&] { cuda::cross_entropy(rows, nullptr); });
  CrossEntropyParams inner = rows;
  inner.inner_size = kPositions;
  inner.logits_layout = inner.gradient_layout = {1, kPositions, 1};
  expect_refusal("cross_entropy of an inner axis", [&] { cuda::cross_entropy(inner, nullptr); });
  CrossEntropyParams smoothed = rows;
  smoothed.target_kind = TargetKind::SmoothedIndex;
  smoothed.label_smoothing = 0.1;
  expect_refusal("cross_entropy in a sweep", [&] { cuda::cross_entropy(smoothed, nullptr); });
  CrossEntropyParams backward = rows;
  backward.mode = CrossEntropyMode::Backward;
  backward.row_max = backward.row_sum = statistics.data();
  backward.grad_output = grad_output.data();
  expect_refusal("cross_entropy backward", [&] { cuda::cross_entropy(backward, nullptr); });

  NLLLossParams nll = {};
  nll.dtype = dtype;
  nll.num_positions = kPositions;
  nll.inner_size = 1;
  nll.num_classes = kClasses;
  nll.target = targets.parameters();
  nll.input = logits.data();
  nll.input_layout = {kClasses, 1, 1};
  expect_refusal("nll_loss", [&] { cuda::nll_loss(nll, nullptr); });
  nll.gradient = gradient.data();
  nll.grad_output = grad_output.data();
  expect_refusal("nll_loss backward", [&] { cuda::nll_loss(nll, nullptr); });
  expect_refusal("weigh_targets", [&] { Mean(targets, dtype); });

  TokenStatisticsParams tokens = {};
  tokens.dtype = dtype;
  tokens.num_positions = kPositions;
  tokens.inner_size = 1;
  tokens.num_classes = kClasses;
  tokens.logits = logits.data();
  tokens.logits_layout = {kClasses, 1, 1};
  tokens.target = targets.parameters();
  tokens.logit_scale = 1;
  // What the rows before the invalid one write.
  Array argmax(Format::Int64, kPositions);
  tokens.argmax = static_cast<int64_t*>(argmax.data());
  tokens.log_prob = tokens.log_sum_exp = tokens.entropy = statistics.data();
  tokens.row_max = tokens.row_sum = tokens.row_others = tokens.row_sum_times_x = statistics.data();
  expect_refusal("token_statistics", [&] { cuda::token_statistics(tokens, nullptr); });
}

inline void check_refused_probability(DType dtype, double input, double target) {
  Scalar x(dtype, input);
  Scalar y(dtype, target);
  Scalar loss(dtype);
  ElementwiseParams parameters = {};
  parameters.dtype = parameters.target_dtype = dtype;
  parameters.num_elements = 1;
  parameters.input = x.data();
  parameters.target = y.data();
  parameters.losses = loss.data();
  expect_refusal("binary_cross_entropy", [&] { cuda::binary_cross_entropy(parameters, nullptr); });
}

inline void check_refusals(DType dtype) {
  check_refused_targets(dtype, 8);
  check_refused_targets(dtype, -1);
  check_refused_probability(dtype, 1.25, 0.5);
  check_refused_probability(dtype, 0.5, -0.25);
  check_refused_probability(dtype, NAN, 0.5);
}

}  // namespace fused_losses::kernel_checks
