// The negative log-likelihood and its gradient.
#pragma once

#include "targets.h"

namespace fused_losses::kernel_checks {

struct NLLLossCase {
  DType dtype;
  int64_t outer;
  int64_t classes;
  int64_t inner;
  IndexType index_type;
  bool weighted;
  int64_t gap;             // elements between rows of the input
  int64_t past_alignment;  // of input and gradient
};

inline void check_nll_loss(const NLLLossCase& test) {
  char name[160];
  std::snprintf(name, sizeof name, "%s nll_loss [%lld, %lld, %lld]%s gap=%lld past alignment=%lld", name_of(test.dtype),
                static_cast<long long>(test.outer), static_cast<long long>(test.classes),
                static_cast<long long>(test.inner), test.weighted ? " weighted" : "", static_cast<long long>(test.gap),
                static_cast<long long>(test.past_alignment));
  current_case = name;

  const DType accumulation = accumulation_of(test.dtype);
  const int64_t positions = test.outer * test.inner;
  const int64_t class_stride = test.inner + (test.inner > 1 ? test.gap : 0);
  const ClassLayout layout{test.classes * class_stride + test.gap, class_stride, 1};
  const auto offset = [&](int64_t position, int64_t c) {
    return layout.offset(position / test.inner, position % test.inner) + c * class_stride;
  };
  Random random(static_cast<uint64_t>(positions));
  Targets targets(random, test.dtype, test.index_type, positions, test.classes, test.weighted);
  Array input(format_of(test.dtype), offset(positions - 1, test.classes - 1) + 1, test.past_alignment);
  random.fill(input, -8, 0);

  NLLLossParams parameters = {};
  parameters.dtype = test.dtype;
  parameters.num_positions = positions;
  parameters.inner_size = test.inner;
  parameters.num_classes = test.classes;
  parameters.target = targets.parameters();
  NLLLossParams forward = parameters;
  Array losses(format_of(accumulation), positions, 1);
  BlockLosses block_losses;
  forward.input = input.data();
  forward.input_layout = layout;
  forward.losses = losses.data();
  forward.block_losses = block_losses.sums();
  const int64_t count = cuda::nll_loss(forward, nullptr);
  double total = 0;
  for (int64_t i = 0; i < positions; ++i) {
    const int64_t c = targets.at(i);
    const double loss = targets.ignored(i) ? 0 : -input[offset(i, c)] * targets.weight(c);
    expect_close("loss", i, losses[i], loss, tolerance_of(accumulation));
    total += loss;
  }
  block_losses.check(count, total, tolerance_of(accumulation));

  const Mean mean(targets, test.dtype);
  Array grad_output(format_of(accumulation), positions, 1);
  random.fill(grad_output, -1, 1);
  for (const bool unreduced : {false, true}) {
    Array gradient(format_of(test.dtype), positions * test.classes, test.past_alignment);
    NLLLossParams backward = parameters;
    backward.gradient = gradient.data();
    backward.gradient_scale = 1;
    if (!unreduced) backward.device_gradient_scale = mean.inverse();
    backward.grad_output = grad_output.data();
    backward.grad_output_stride = unreduced ? 1 : 0;
    cuda::nll_loss(backward, nullptr);
    for (int64_t i = 0; i < positions; ++i) {
      const double scale = unreduced ? grad_output[i] : grad_output[0] / targets.denominator();
      for (int64_t c = 0; c < test.classes; ++c) {
        const bool chosen = c == targets.at(i) && !targets.ignored(i);
        const int64_t element = (i / test.inner * test.classes + c) * test.inner + i % test.inner;
        expect_close("gradient", element, gradient[element], chosen ? -scale * targets.weight(c) : 0,
                     tolerance_of(test.dtype, scale));
      }
    }
  }
}

inline void check_nll_losses(DType dtype) {
  check_nll_loss({dtype, 515, 3, 1, IndexType::Int64, false, 0, 0});  // round again
  check_nll_loss({dtype, 9, 10, 1, IndexType::UInt8, true, 2, 1});
  check_nll_loss({dtype, 3, 5, 7, IndexType::Int32, true, 0, 3});
  check_nll_loss({dtype, 2, 1, 12, IndexType::Int64, true, 3, 0});
}

}  // namespace fused_losses::kernel_checks
