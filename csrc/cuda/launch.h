// The one place where kernels are launched.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "device.h"
#include "kernels.h"

namespace fused_losses::cuda {
namespace {

struct LaunchShape {
  int64_t num_blocks;
  int threads_per_block;
  int64_t dynamic_shared_bytes = 0;
};

#if defined(__CUDACC__)

inline void check(cudaError_t error) {
  // The words of torch's own RuntimeError.
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error));
}

template <class... Parameters, class... Arguments>
inline void launch(void (*kernel)(Parameters...), const LaunchShape& shape, Stream stream,
                   const Arguments&... arguments) {
  kernel<<<static_cast<unsigned>(shape.num_blocks), shape.threads_per_block,
           static_cast<size_t>(shape.dynamic_shared_bytes), static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError());
}

// The most dynamic shared memory that the kernel's blocks may have on the current device, which it is told. Always the
// same number, so that it does not matter which of two threads says it first.
template <class... Parameters>
inline int64_t max_dynamic_shared_bytes(void (*kernel)(Parameters...)) {
  int device = 0;
  int block_bytes = 0;
  cudaFuncAttributes attributes;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&block_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check(cudaFuncGetAttributes(&attributes, kernel));
  const int bytes = block_bytes - static_cast<int>(attributes.sharedSizeBytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  return bytes;
}

inline void fill_with_zeros(void* data, size_t bytes, Stream stream) {
  check(cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(stream)));
}

#else

template <class... Parameters, class... Arguments>
inline void launch(void (*kernel)(Parameters...), const LaunchShape& shape, Stream, const Arguments&... arguments) {
  emulation::launch_with_shared_memory(kernel, shape.num_blocks, shape.threads_per_block, shape.dynamic_shared_bytes,
                                       arguments...);
}

template <class... Parameters>
inline int64_t max_dynamic_shared_bytes(void (*)(Parameters...)) {
  return emulation::kMaxDynamicSharedBytes;
}

inline void fill_with_zeros(void* data, size_t bytes, Stream) { std::memset(data, 0, bytes); }

#endif

// The number of blocks depends on the shape alone, so that sums come out the same on every GPU; more than this many
// blocks go round again.
constexpr int64_t kMaxBlocks = 8192;

inline int64_t blocks_for(int64_t count, int64_t per_block) {
  const int64_t blocks = (count + per_block - 1) / per_block;
  return blocks < kMaxBlocks ? blocks : kMaxBlocks;
}

}  // namespace
}  // namespace fused_losses::cuda
