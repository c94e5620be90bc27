// Elements of every type as the accumulation type, and the functions of the accumulation types. Packets of them:
// packet.h.
#pragma once

#include "../core/element_types.h"
#include "device.h"

namespace fused_losses::cuda {
namespace {

__device__ __forceinline__ float to_accumulation(float value) { return value; }
__device__ __forceinline__ double to_accumulation(double value) { return value; }
__device__ __forceinline__ float to_accumulation(BFloat16 value) { return float_of_bfloat16(value.bits); }
__device__ __forceinline__ float to_accumulation(Float16 value) { return float_of_float16(value.bits); }

template <class T>
__device__ __forceinline__ T from_accumulation(Accumulation<T> value) {
  if constexpr (kSameType<T, BFloat16>) {
    return {bfloat16_of_float(value)};
  } else if constexpr (kSameType<T, Float16>) {
    return {float16_of_float(value)};
  } else {
    return value;
  }
}

template <class A>
constexpr A kInfinity = static_cast<A>(__builtin_inff());

// The accumulation types' functions under one name each.
__device__ __forceinline__ float log_of(float x) { return logf(x); }
__device__ __forceinline__ double log_of(double x) { return log(x); }
__device__ __forceinline__ float log1p_of(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_of(double x) { return log1p(x); }
__device__ __forceinline__ float tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x) { return tanh(x); }
// One rounding, said in words: two kernels that are to give the same bits cannot leave it to the compiler.
__device__ __forceinline__ float fma_of(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double fma_of(double a, double b, double c) { return fma(a, b, c); }
__device__ __forceinline__ float max_of(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double max_of(double a, double b) { return fmax(a, b); }

constexpr float kLog2OfE = 1.44269504f;
constexpr float kLogOf2 = 0.693147181f;

// exp(x) of the shifted logits of a softmax, x <= 0. 16-bit logits take the hardware's 2^x of a rounded x log2(e):
// where its error is large the value is small, so that a sum with exp(0) = 1 in it loses less than half an ULP, and a
// probability is rounded to 16 bits. float32 mends that rounding, by a factor 1 + r with r = x - log(2) times what was
// rounded. Five instructions; expf takes eight.
template <class T>
__device__ __forceinline__ Accumulation<T> exp_of_shifted(Accumulation<T> x) {
  if constexpr (kSameType<T, double>) {
    return exp(x);
  } else if constexpr (kSameType<T, float>) {
    const float finite = max_or_nan(x, -128.0f);  // its exponential is 0 all the same
    const float in_twos = finite * kLog2OfE;
    const float exponential = fast_exp2(in_twos);
    return fma_of(exponential, fma_of(in_twos, -kLogOf2, finite), exponential);
  } else {
    return fast_exp2(x * kLog2OfE);
  }
}

// Note [Shifts in twos]
// The exponentials of one row, exp(x - shift). Of 16-bit logits in one multiply-add and the hardware's 2^x: x log2(e) -
// offset, where offset is shift log2(e) rounded. What that rounds away is the same factor for the whole row, and
// `correction` takes it out again: of a sum once, of a gradient in the row's own factor. Beyond 2^17 the correction
// would overflow, and so would the products in the end. There two logits that differ do so by 512 or more (bfloat16 has
// 8 bits), one exponential is 1 and all others are 0, and a slope of 1 does as well.
template <class T>
class RowExponential {
 public:
  using A = Accumulation<T>;

  RowExponential() = default;
  __device__ __forceinline__ explicit RowExponential(A shift) : offset_(shift) {
    if constexpr (kInTwos) {
      slope_ = max_of(shift, -shift) > A(0x1p17) ? A(1) : A(kLog2OfE);
      offset_ = shift * slope_;
    }
  }

  __device__ __forceinline__ A operator()(A x) const {
    if constexpr (kInTwos) return fast_exp2(fma_of(x, slope_, -offset_));
    return exp_of_shifted<T>(x - offset_);
  }
  // What a sum of exponentials, or what multiplies one, is multiplied by; `shift` is the constructor's.
  __device__ __forceinline__ A correction(A shift) const {
    if constexpr (kInTwos) return fast_exp2(-fma_of(shift, slope_, -offset_));
    return A(1);
  }

 private:
  static constexpr bool kInTwos = sizeof(T) == 2;

  A offset_;
  A slope_;
};

}  // namespace
}  // namespace fused_losses::cuda
