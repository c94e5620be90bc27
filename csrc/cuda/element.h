// Elements of every type as the accumulation type, one by one and in packets of 16 bytes.
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

constexpr int kPacketBytes = 16;  // the widest access of one thread
template <class T>
constexpr int kPacketElements = kPacketBytes / static_cast<int>(sizeof(T));

template <class T>
struct alignas(kPacketBytes) Packet {
  T elements[kPacketElements<T>];
};

// What is read for the last time shall not push anything else out of the caches.
enum class Reuse { Never, Soon };

// `address` aligned to 16 bytes.
template <class T>
__device__ __forceinline__ Packet<T> load_packet(const T* address, Reuse reuse) {
  union {
    uint4 words;
    Packet<T> packet;
  } both;
  const uint4* const words = reinterpret_cast<const uint4*>(address);
  both.words = reuse == Reuse::Soon ? *words : __ldcs(words);
  return both.packet;
}
// As data that nobody reads soon.
template <class T>
__device__ __forceinline__ void store_packet(T* address, const Packet<T>& packet) {
  union {
    uint4 words;
    Packet<T> packet;
  } both;
  both.packet = packet;
  __stcs(reinterpret_cast<uint4*>(address), both.words);
}

// Elements between the aligned address at or below this one and this one.
template <class T>
__device__ __forceinline__ int elements_past_alignment(const T* address) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(address) % kPacketBytes / sizeof(T));
}

// The accumulation types' functions under one name each.
__device__ __forceinline__ float log_of(float x) { return logf(x); }
__device__ __forceinline__ double log_of(double x) { return log(x); }
__device__ __forceinline__ float log1p_of(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_of(double x) { return log1p(x); }
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
