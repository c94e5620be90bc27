// The small kernels beside the losses, at sizes that the losses' own cases do not give them.
#pragma once

#include <string>
#include <vector>

#include "targets.h"

namespace fused_losses::kernel_checks {

// More targets than a block weighs, and than all blocks weigh at once.
inline void check_weigh_targets(DType dtype, int64_t num_positions, IndexType type, bool weighted) {
  current_case = std::string(name_of(dtype)) + " weigh_targets of " + std::to_string(num_positions);
  Random random(7);
  const Targets targets(random, dtype, type, num_positions, 40, weighted);
  Mean(targets, dtype);
}

// More than one value for a thread.
inline void check_sums(DType dtype, int64_t count) {
  current_case = std::string(name_of(dtype)) + " sums of " + std::to_string(count);
  Random random(11);
  const Targets targets(random, dtype, IndexType::Int64, 1, count, true);
  Scalar sum(DType::Float64);
  cuda::sum_class_weights(targets.parameters(), static_cast<double*>(sum.data()), nullptr);
  expect_close("sum of the class weights", 0, sum[0], targets.weight_sum(), {1e-12, 0});

  Array block_losses(Format::Float64, count);
  random.fill(block_losses, 0, 1);
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += block_losses[i];
  const Scalar denominator(DType::Float64, 5);
  for (const bool on_device : {false, true}) {
    Scalar loss(dtype);
    const double* const divisor = on_device ? static_cast<const double*>(denominator.data()) : nullptr;
    const double* const sums = static_cast<const double*>(block_losses.data());
    cuda::reduce_losses({sums, count, 7.0, divisor, loss.data(), dtype}, nullptr);
    expect_close("reduced loss", 0, loss[0], total / (on_device ? 5 : 7), tolerance_of(dtype));
  }
}

}  // namespace fused_losses::kernel_checks
