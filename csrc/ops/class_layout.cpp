#include "class_layout.h"

#include <algorithm>

namespace fused_losses {
namespace {

// Axes of the positions, adjacent ones merged where one stride serves both in every tensor.
struct MergedAxes {
  std::vector<int64_t> sizes;
  std::vector<std::vector<int64_t>> strides;  // [axis][tensor]
};

MergedAxes merge_axes(const std::vector<int64_t>& sizes, int class_dim,
                      const std::vector<std::vector<int64_t>>& strides) {
  MergedAxes merged;
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (static_cast<int>(dim) == class_dim || sizes[dim] == 1) continue;
    std::vector<int64_t> axis;
    for (const auto& tensor : strides) axis.push_back(tensor[dim]);
    bool mergeable = !merged.sizes.empty();
    for (size_t t = 0; mergeable && t < strides.size(); ++t) {
      mergeable = merged.strides.back()[t] == axis[t] * sizes[dim];
    }
    if (mergeable) {
      merged.sizes.back() *= sizes[dim];
      merged.strides.back() = axis;
    } else {
      merged.sizes.push_back(sizes[dim]);
      merged.strides.push_back(axis);
    }
  }
  return merged;
}

}  // namespace

ClassShape class_shape(const std::vector<int64_t>& sizes) {
  if (sizes.empty()) refuse("the input needs a class axis");
  ClassShape shape;
  shape.class_dim = sizes.size() == 1 ? 0 : 1;
  shape.num_classes = sizes[static_cast<size_t>(shape.class_dim)];
  shape.num_positions = 1;
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (static_cast<int>(dim) == shape.class_dim) continue;
    shape.position_sizes.push_back(sizes[dim]);
    shape.num_positions *= sizes[dim];
  }
  if (shape.num_classes == 0 || shape.num_positions == 0) refuse("empty tensors have no kernel");
  return shape;
}

std::optional<PositionLayout> position_layout(const std::vector<int64_t>& sizes, int class_dim,
                                              const std::vector<std::vector<int64_t>>& strides) {
  const MergedAxes axes = merge_axes(sizes, class_dim, strides);
  const size_t num_axes = axes.sizes.size();
  if (num_axes > 2) return std::nullopt;
  const size_t class_axis = static_cast<size_t>(class_dim);

  PositionLayout result;
  result.inner_size = num_axes == 0 ? 1 : axes.sizes.back();
  result.contiguous_classes = true;
  bool contiguous_inner = num_axes > 0;
  for (size_t t = 0; t < strides.size(); ++t) {
    ClassLayout layout;
    layout.class_stride = sizes[class_axis] == 1 ? 1 : strides[t][class_axis];
    if (num_axes > 0) layout.inner_stride = axes.strides.back()[t];
    if (num_axes > 1) layout.outer_stride = axes.strides.front()[t];
    result.contiguous_classes = result.contiguous_classes && layout.class_stride == 1;
    contiguous_inner = contiguous_inner && layout.inner_stride == 1;
    result.layouts.push_back(layout);
  }
  if (!result.contiguous_classes && !contiguous_inner) return std::nullopt;
  return result;
}

}  // namespace fused_losses
