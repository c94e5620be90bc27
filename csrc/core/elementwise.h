// Parameters of the elementwise losses, shared by every backend.
#pragma once

#include <cstdint>

#include "element_types.h"

namespace fused_losses {

constexpr int kMaxBroadcastDims = 8;

// A tensor broadcast to the input's shape, addressed by the input's storage order.
struct BroadcastOperand {
  const void* data = nullptr;  // null: ones
  DType dtype = DType::Float32;
  int num_dims = 0;
  int64_t sizes[kMaxBroadcastDims] = {};
  int64_t strides[kMaxBroadcastDims] = {};
};

enum class ElementwiseMode : int32_t { Loss, LossAndGradient, Backward };

struct ElementwiseParams {
  DType dtype;         // of input and gradient
  DType target_dtype;  // of target, losses and grad_output
  ElementwiseMode mode;
  int64_t num_elements;
  int64_t elements_per_block;
  const void* input;
  const void* target;
  BroadcastOperand weight;
  BroadcastOperand pos_weight;
  void* losses;          // [num_elements], or null
  double* block_losses;  // [num_blocks], or null
  void* gradient;        // may be the input itself
  bool stream_gradient;  // it is larger than a cache, aligned to 64 bytes, and not the input
  double focal_alpha;    // of the focal loss alone, as its gamma; -1: none
  double focal_gamma;
  double gradient_scale;    // 1 / num_elements with a mean, times a scalar grad_output
  const void* grad_output;  // [num_elements] in the target's type, or null
  // One value in the target's type where the host does not know it, or null. In LossAndGradient mode `gradient` is
  // there already, for prepared_for.
  const void* device_grad_output;
  double prepared_for = 1;
  int32_t* block_faults;  // [num_blocks] RangeFault bits, or null
};

// What torch.nn.functional.binary_cross_entropy refuses: values outside [0, 1], NaN included.
enum RangeFault : int32_t { kInputOutOfRange = 1, kTargetOutOfRange = 2 };

}  // namespace fused_losses
