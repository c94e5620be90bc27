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

#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)  // its name up to torch 2.11
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace fused_losses {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// For what an operator has no kernel for. The package asks before it calls (fused_losses/operators), so that mostly who
// calls an operator directly meets it, as a RuntimeError: of other classes every torch translates its own.
[[noreturn]] inline void refuse(const std::string& reason) { throw std::runtime_error("fused_losses: " + reason); }

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

inline size_t element_size(ScalarType type) { return type == ScalarType::Double ? 8 : is_16_bit(type) ? 2 : 4; }

// The type's number in torch's C interface.
inline int32_t to_shim(ScalarType type) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
}

inline ScalarType accumulation_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Reduction to_reduction(int64_t reduction) {
  if (reduction < 0 || reduction > 2) refuse("reduction must be 0 (none), 1 (mean) or 2 (sum)");
  return static_cast<Reduction>(reduction);
}

// Refuses a tensor on another device than the reference's, and one whose storage was freed.
void check_tensor(const Tensor& tensor, const Tensor& reference);

// Refuses what is no gradient of a loss beside the reference: one number, or without reduction one for each loss.
void check_grad_output(const Tensor& grad_output, const Tensor& reference, Reduction reduction, int64_t num_losses);

inline Tensor cast(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

inline std::vector<int64_t> to_vector(torch::headeronly::IntHeaderOnlyArrayRef values) {
  return {values.begin(), values.end()};
}

std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes);

// Whether two elements may lie at one address. Says so of some unusual strides that do not overlap, too.
bool overlaps(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides);

// The axes from the slowest to the fastest in memory.
std::vector<size_t> storage_order(const std::vector<int64_t>& strides);

// The strides of torch.empty_like, whose copy of this rule torch.compile believes: dense ones as they are, else without
// gaps or overlaps in the order of the given ones.
std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides);

// How much memory that many elements need; nothing where that is no number.
std::optional<size_t> bytes_of(const std::vector<int64_t>& sizes, ScalarType type);

// Uninitialised memory on the device of `like`.
Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType type,
                     const Tensor& like);
Tensor empty(const std::vector<int64_t>& sizes, ScalarType type, const Tensor& like);

// The same elements at these strides: the tensor itself, or a copy.
Tensor at_strides(const Tensor& tensor, const std::vector<int64_t>& strides);
Tensor as_contiguous(const Tensor& tensor);

}  // namespace fused_losses
