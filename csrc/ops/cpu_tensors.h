// Tensors in the memory of the CPU: gradients from the pool, values on the host.
#pragma once

#include <optional>
#include <vector>

#include "tensors.h"

namespace fused_losses {

// A tensor over memory that is not torch's; `deleter(data, context)` is called when nothing needs it any more. Nothing
// where torch cannot do that (before 2.11), and then nothing is called.
std::optional<Tensor> tensor_over(void* data, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                                  ScalarType type, void (*deleter)(void* data, void* context), void* context);

// Uninitialised memory for a gradient; a large one comes from the pool: see gradient_pool.h.
Tensor empty_gradient(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType type,
                      const Tensor& like);

// Whether a gradient is written past the caches: where it is too large to stay in one until it is read, and begins at a
// cache line, as all of torch's memory does. See Note [Streaming stores] in cpu/vec.h.
inline bool is_streamed(const Tensor& gradient) {
  constexpr int64_t kLargestCached = int64_t(64) << 20;
  constexpr uintptr_t kCacheLine = 64;
  return gradient.numel() * static_cast<int64_t>(gradient.element_size()) >= kLargestCached &&
         reinterpret_cast<uintptr_t>(gradient.data_ptr()) % kCacheLine == 0;
}

// A tensor without dimensions that holds the value; of a 16-bit type it is rounded to float first, as torch does.
Tensor scalar_tensor(double value, ScalarType type, const Tensor& like);

// The value of a tensor with one element.
double scalar_value(const Tensor& tensor);

}  // namespace fused_losses
