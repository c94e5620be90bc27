// What every operator does with tensors: types, checks, allocation.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../core/element_types.h"

namespace fused_losses {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// For what an operator has no kernel for: Python turns to torch's own function, which computes it or says what is
// wrong.
[[noreturn]] inline void refuse(const std::string& reason) { throw std::invalid_argument("fused_losses: " + reason); }

inline bool is_float_type(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

inline bool is_16_bit(ScalarType type) { return type == ScalarType::BFloat16 || type == ScalarType::Half; }

inline DType to_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return DType::Float32;
    case ScalarType::Double:
      return DType::Float64;
    case ScalarType::BFloat16:
      return DType::BFloat16;
    case ScalarType::Half:
      return DType::Float16;
    default:
      refuse("no kernel for this floating-point type");
  }
}

inline ScalarType accumulation_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Reduction to_reduction(int64_t reduction) {
  if (reduction < 0 || reduction > 2) refuse("reduction must be 0 (none), 1 (mean) or 2 (sum)");
  return static_cast<Reduction>(reduction);
}

inline void check_cpu(const Tensor& tensor) {
  if (!tensor.is_cpu()) refuse("all tensors must be on the CPU");
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Tensor cast(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

inline std::vector<int64_t> to_vector(torch::headeronly::IntHeaderOnlyArrayRef values) {
  return {values.begin(), values.end()};
}

std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes);

// Whether two elements may lie at one address. Says so of some unusual strides that do not overlap, too.
bool overlaps(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides);

Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType type);
Tensor empty(const std::vector<int64_t>& sizes, ScalarType type);

// Uninitialised memory for a gradient; a large one comes from the pool: see gradient_pool.h.
Tensor empty_gradient(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType type);

// Whether a gradient is written past the caches: where it is too large to stay in one until it is read, and begins at a
// cache line, as all of torch's memory does. See Note [Streaming stores] in cpu/vec.h.
inline bool is_streamed(const Tensor& gradient) {
  constexpr int64_t kLargestCached = int64_t(64) << 20;
  constexpr uintptr_t kCacheLine = 64;
  return gradient.numel() * static_cast<int64_t>(gradient.element_size()) >= kLargestCached &&
         reinterpret_cast<uintptr_t>(gradient.data_ptr()) % kCacheLine == 0;
}

// A tensor without dimensions that holds the value, rounded once.
Tensor scalar_tensor(double value, ScalarType type);

// The value of a tensor with one element.
double scalar_value(const Tensor& tensor);

}  // namespace fused_losses
