// Marks what both the host and a GPU run.
#pragma once

#if defined(__CUDACC__) || defined(__HIPCC__)
#define FUSED_LOSSES_HOST_DEVICE __host__ __device__
#else
#define FUSED_LOSSES_HOST_DEVICE
#endif
