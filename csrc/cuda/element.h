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

// exp(x) of the shifted logits of a softmax, x <= 0. 16-bit logits take the fast one: where its error is large the
// value is small, so that a sum with exp(0) = 1 in it loses less than half an ULP, and a probability is rounded to 16
// bits.
template <class T>
__device__ __forceinline__ Accumulation<T> exp_of_shifted(Accumulation<T> x) {
  if constexpr (kSameType<T, double>) {
    return exp(x);
  } else if constexpr (kSameType<T, float>) {
    return expf(x);
  } else {
    return fast_exp(x);
  }
}

}  // namespace
}  // namespace fused_losses::cuda
