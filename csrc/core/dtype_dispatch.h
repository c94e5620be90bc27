// From a type that is known at run time to one that is known to the compiler.
#pragma once

#include "element_types.h"

namespace fused_losses {
namespace {

// visit(T{}) for the type T that `dtype` names.
template <class Visit>
constexpr decltype(auto) by_dtype(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::Float32:
      return visit(float{});
    case DType::Float64:
      return visit(double{});
    case DType::BFloat16:
      return visit(BFloat16{});
    case DType::Float16:
      return visit(Float16{});
  }
  __builtin_unreachable();
}

template <class Visit>
constexpr decltype(auto) by_index_type(IndexType type, const Visit& visit) {
  switch (type) {
    case IndexType::Int64:
      return visit(int64_t{});
    case IndexType::Int32:
      return visit(int32_t{});
    case IndexType::UInt8:
      return visit(uint8_t{});
  }
  __builtin_unreachable();
}

// In bytes.
constexpr int64_t size_of(DType dtype) {
  return by_dtype(dtype, [](auto element) { return static_cast<int64_t>(sizeof(element)); });
}
constexpr int64_t size_of(IndexType type) {
  return by_index_type(type, [](auto index) { return static_cast<int64_t>(sizeof(index)); });
}

}  // namespace
}  // namespace fused_losses
