// The one place where kernels are launched.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "device.h"
#include "kernels.h"

namespace fused_losses::cuda {
namespace {

#if defined(__CUDACC__)

inline void check(cudaError_t error) {
  // The words of torch's own RuntimeError.
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error));
}

template <class... Parameters, class... Arguments>
inline void launch(void (*kernel)(Parameters...), int64_t num_blocks, int threads_per_block, Stream stream,
                   const Arguments&... arguments) {
  kernel<<<static_cast<unsigned>(num_blocks), threads_per_block, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError());
}

inline void fill_with_zeros(void* data, size_t bytes, Stream stream) {
  check(cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(stream)));
}

#else

template <class... Parameters, class... Arguments>
inline void launch(void (*kernel)(Parameters...), int64_t num_blocks, int threads_per_block, Stream,
                   const Arguments&... arguments) {
  emulation::launch(kernel, num_blocks, threads_per_block, arguments...);
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
