// Parameters of the negative log-likelihood: loss = -class_weight_t * input_t, and its gradient, which does not depend
// on the input.
#pragma once

#include "class_layout.h"
#include "element_types.h"
#include "index_target.h"

namespace fused_losses {

struct NLLLossParams {
  DType dtype;
  int64_t num_positions;  // outer_size * inner_size
  int64_t inner_size;
  int64_t num_classes;
  int64_t positions_per_block;
  IndexTarget target;  // [num_positions]

  // Forward
  const void* input;
  ClassLayout input_layout;
  void* losses;               // [num_positions] in the accumulation type, or null
  double* block_losses;       // [num_blocks] sums of the losses, or null
  TargetScan* block_targets;  // [num_blocks] what the targets are; a block with an invalid one has no losses

  // Backward: the gradient is [outer, num_classes, inner], contiguous; zero on entry on a CPU
  void* gradient;
  double gradient_scale;
  const void* grad_output;  // accumulation type; [num_positions] with stride 1, or one value with stride 0
  int64_t grad_output_stride;
  const void* device_gradient_scale;  // where the host does not know gradient_scale: it, in the accumulation type
};

}  // namespace fused_losses
