// CUDA for the host: kernel sources compile unchanged with a C++20 compiler and run on the CPU, a fiber for every
// thread. No CUDA headers are needed, and none may be included beside this one.
//
//   g++ -x c++ -std=c++20 -Wno-unknown-pragmas -I tests/cuda/emulation kernel.cu
//
// What it is for: wrong results show in one of several orders of execution (order.h), misuse of barriers, masks, shared
// memory and alignment ends a launch with an error (misuse.h), and the sanitizers see the kernels as they would see
// threads (sanitizers.h). What it cannot show: anything about speed, or about a GPU's arithmetic.
#pragma once

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

#include "builtins.h"
#include "launch.h"
#include "memory.h"
#include "order.h"
#include "synchronization.h"
