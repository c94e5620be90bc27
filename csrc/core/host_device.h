// Marks what both the host and a GPU run, and what is never a function of its own.
#pragma once

#if defined(__CUDACC__) || defined(__HIPCC__)
#define FUSED_LOSSES_HOST_DEVICE __host__ __device__
#else
#define FUSED_LOSSES_HOST_DEVICE
#endif

#define FUSED_LOSSES_ALWAYS_INLINE __attribute__((always_inline))
