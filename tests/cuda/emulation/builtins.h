// CUDA's vector types and built-in variables.
#pragma once

#include <cstdint>

struct alignas(8) uint2 {
  unsigned x, y;
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

constexpr uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
constexpr uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Of the thread that runs on this host thread. Grids and blocks have one dimension.
inline constinit thread_local uint3 threadIdx = {0, 0, 0};
inline constinit thread_local uint3 blockIdx = {0, 0, 0};
inline constinit thread_local dim3 blockDim = {};
inline constinit thread_local dim3 gridDim = {};
constexpr int warpSize = 32;
