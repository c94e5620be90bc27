// Tensors of shape (C), (N, C) or (N, C, d1, ..., dk) seen as positions times classes.
#pragma once

#include <optional>
#include <vector>

#include "../core/class_layout.h"
#include "tensors.h"

namespace fused_losses {

struct ClassShape {
  int64_t num_classes;
  int64_t num_positions;
  std::vector<int64_t> position_sizes;  // the shape of index targets and of unreduced losses
  int class_dim;
};

ClassShape class_shape(const std::vector<int64_t>& sizes);

// The positions as an outer and an inner axis of one stride each, for several tensors at once.
struct PositionLayout {
  int64_t inner_size = 1;
  bool contiguous_classes = false;   // every tensor's classes are contiguous; else every tensor's inner axis is
  std::vector<ClassLayout> layouts;  // one per tensor
};

// Nothing where the tensors' strides do not fit the pattern: contiguous tensors always do.
std::optional<PositionLayout> position_layout(const std::vector<int64_t>& sizes, int class_dim,
                                              const std::vector<std::vector<int64_t>>& strides);

}  // namespace fused_losses
