// What the kernels need of CUDA: from nvcc, or from the emulation that runs the same sources on the host in the tests.
// Besides this file launch.h and core/host_device.h alone ask which of the two compiles them.
#pragma once

#if defined(__CUDACC__)

#undef NDEBUG  // an invalid target must stop the kernel in every build, as torch's own kernels do
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cassert>
#include <cstdint>

#define FUSED_LOSSES_SHARED(type, name, count) __shared__ type name[count]
// As many bytes as the launch says, aligned to 16.
#define FUSED_LOSSES_DYNAMIC_SHARED(type, name)          \
  extern __shared__ uint4 fused_losses_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(fused_losses_dynamic_shared)
#define FUSED_LOSSES_DEVICE_ASSERT(condition) assert(condition)

namespace fused_losses::cuda {
namespace {

__device__ __forceinline__ float float_of_bfloat16(uint16_t bits) { return __uint_as_float(uint32_t(bits) << 16); }
__device__ __forceinline__ float float_of_float16(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
__device__ __forceinline__ uint16_t bfloat16_of_float(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
__device__ __forceinline__ uint16_t float16_of_float(float value) { return __half_as_ushort(__float2half_rn(value)); }

// The larger ones of two pairs of 16-bit numbers; of NaN and a number the number.
__device__ __forceinline__ uint32_t max_of_bfloat16_pairs(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}
__device__ __forceinline__ uint32_t max_of_float16_pairs(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("max.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

__device__ __forceinline__ float low_of_bfloat16_pair(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_of_bfloat16_pair(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ uint32_t bfloat16_pair_of(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ float low_of_float16_pair(uint32_t pair) { return float_of_float16(pair & 0xffffu); }
__device__ __forceinline__ float high_of_float16_pair(uint32_t pair) { return float_of_float16(pair >> 16); }
__device__ __forceinline__ uint32_t float16_pair_of(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ float float_of_bits(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ uint32_t bits_of_float(float value) { return __float_as_uint(value); }
__device__ __forceinline__ double double_of_bits(uint32_t low, uint32_t high) {
  return __hiloint2double(static_cast<int>(high), static_cast<int>(low));
}
__device__ __forceinline__ uint32_t low_bits_of_double(double value) { return uint32_t(__double2loint(value)); }
__device__ __forceinline__ uint32_t high_bits_of_double(double value) { return uint32_t(__double2hiint(value)); }

// 2^x by the hardware, two ULP; subnormal results are 0.
__device__ __forceinline__ float fast_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
// 1 / x by the hardware, an ULP; of subnormal numbers infinity.
__device__ __forceinline__ float fast_reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
// The same word, of which the compiler does not know that.
__device__ __forceinline__ uint32_t opaque(uint32_t word) {
  asm volatile("" : "+r"(word));
  return word;
}
// The larger number; NaN if one is.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

}  // namespace
}  // namespace fused_losses::cuda

#else

#include <cuda_emulation.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define __grid_constant__
#define FUSED_LOSSES_SHARED(type, name, count) type* const name = fused_losses::emulation::shared_array<type>(count)
#define FUSED_LOSSES_DYNAMIC_SHARED(type, name) \
  type* const name = reinterpret_cast<type*>(fused_losses::emulation::dynamic_shared_array())
#define FUSED_LOSSES_DEVICE_ASSERT(condition) \
  fused_losses::emulation::device_assert(condition, #condition, __FILE__, __LINE__)

namespace fused_losses::cuda {
namespace {

template <class To, class From>
inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float float_of_bfloat16(uint16_t bits) { return same_bits<float>(uint32_t(bits) << 16); }
inline float float_of_float16(uint16_t bits) { return static_cast<float>(same_bits<_Float16>(bits)); }
inline uint16_t bfloat16_of_float(float value) {
  const uint32_t bits = same_bits<uint32_t>(value);
  if (value != value) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline uint16_t float16_of_float(float value) { return same_bits<uint16_t>(static_cast<_Float16>(value)); }

template <float ToFloat(uint16_t)>
inline uint32_t max_of_pairs(uint32_t a, uint32_t b) {
  const auto larger = [](uint16_t x, uint16_t y) {
    return std::fmax(ToFloat(x), ToFloat(y)) == ToFloat(x) || std::isnan(ToFloat(y)) ? x : y;
  };
  const auto half = [](uint32_t pair, int shift) { return static_cast<uint16_t>(pair >> shift); };
  return larger(half(a, 0), half(b, 0)) | uint32_t(larger(half(a, 16), half(b, 16))) << 16;
}
inline uint32_t max_of_bfloat16_pairs(uint32_t a, uint32_t b) { return max_of_pairs<float_of_bfloat16>(a, b); }
inline uint32_t max_of_float16_pairs(uint32_t a, uint32_t b) { return max_of_pairs<float_of_float16>(a, b); }

inline float low_of_bfloat16_pair(uint32_t pair) { return float_of_bfloat16(static_cast<uint16_t>(pair)); }
inline float high_of_bfloat16_pair(uint32_t pair) { return float_of_bfloat16(static_cast<uint16_t>(pair >> 16)); }
inline uint32_t bfloat16_pair_of(float low, float high) {
  return bfloat16_of_float(low) | uint32_t(bfloat16_of_float(high)) << 16;
}
inline float low_of_float16_pair(uint32_t pair) { return float_of_float16(static_cast<uint16_t>(pair)); }
inline float high_of_float16_pair(uint32_t pair) { return float_of_float16(static_cast<uint16_t>(pair >> 16)); }
inline uint32_t float16_pair_of(float low, float high) {
  return float16_of_float(low) | uint32_t(float16_of_float(high)) << 16;
}
inline float float_of_bits(uint32_t bits) { return same_bits<float>(bits); }
inline uint32_t bits_of_float(float value) { return same_bits<uint32_t>(value); }
inline double double_of_bits(uint32_t low, uint32_t high) { return same_bits<double>(low | uint64_t(high) << 32); }
inline uint32_t low_bits_of_double(double value) { return static_cast<uint32_t>(same_bits<uint64_t>(value)); }
inline uint32_t high_bits_of_double(double value) { return static_cast<uint32_t>(same_bits<uint64_t>(value) >> 32); }

inline float fast_exp2(float x) {
  const float result = std::exp2(x);
  return result < 0x1p-126f ? 0.0f : result;
}
inline float fast_reciprocal(float x) { return 1.0f / (std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x); }
inline uint32_t opaque(uint32_t word) { return word; }
inline float max_or_nan(float a, float b) { return std::isnan(a) || std::isnan(b) ? a + b : std::fmax(a, b); }

}  // namespace
}  // namespace fused_losses::cuda

#endif
