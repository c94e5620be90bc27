// Element types that the kernels read and write, and the type each of them computes in.
#pragma once

#include <cstdint>

namespace fused_losses {

// 16-bit formats are storage only: every kernel computes in the accumulation type.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

enum class DType : int32_t { Float32, Float64, BFloat16, Float16 };

enum class IndexType : int32_t { Int64, Int32, UInt8 };

// The values of torch.nn._reduction.get_enum.
enum class Reduction : int64_t { None = 0, Mean = 1, Sum = 2 };

template <class T>
struct AccumulationOf {
  using type = float;
};
template <>
struct AccumulationOf<double> {
  using type = double;
};
template <class T>
struct AccumulationOf<const T> : AccumulationOf<T> {};
template <class T>
using Accumulation = typename AccumulationOf<T>::type;

template <class T, class U>
constexpr bool kSameType = false;
template <class T>
constexpr bool kSameType<T, T> = true;

}  // namespace fused_losses
