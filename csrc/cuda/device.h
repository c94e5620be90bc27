// What the kernels need of CUDA: from nvcc, or from the emulation that runs the same sources on the host in the tests.
// This is the only file that knows which of the two compiles it.
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

// exp by the hardware's ex2: the error grows by an ULP for each unit of |x|.
__device__ __forceinline__ float fast_exp(float x) { return __expf(x); }

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

inline float fast_exp(float x) { return std::exp2(x * 1.44269504f); }

}  // namespace
}  // namespace fused_losses::cuda

#endif
