// How many registers a kernel's threads may have.
//
// Note [Launch bounds]
// Told only the number of threads, nvcc aims at the register count that lets one more block reside, and spills where it
// misses it by a few (CUDA C++ Programming Guide, Launch Bounds). So the kernels of the losses state a number that they
// get by with. tests/cuda/test_static_evidence.py shows that nothing is spilled.
#pragma once

#include "device.h"

namespace fused_losses::cuda {
namespace {

// From 10.0 on the same kernel takes up to twice the registers (nvcc 13.0).
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool kBlackwell = true;
#else
constexpr bool kBlackwell = false;
#endif

// The second argument of __launch_bounds__: the blocks that fit a multiprocessor with so many registers a thread.
constexpr int min_blocks(int block_threads, int thread_registers) {
  constexpr int kRegisters = 65536;
  return kRegisters / (block_threads * thread_registers);
}

}  // namespace
}  // namespace fused_losses::cuda
