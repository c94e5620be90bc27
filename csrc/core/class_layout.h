// Where the classes of one position lie in memory.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace fused_losses {

// position = outer * inner_size + inner; strides in elements.
struct ClassLayout {
  int64_t outer_stride = 0;
  int64_t class_stride = 0;
  int64_t inner_stride = 0;

  FUSED_LOSSES_HOST_DEVICE constexpr int64_t offset(int64_t outer, int64_t inner) const {
    return outer * outer_stride + inner * inner_stride;
  }
};

}  // namespace fused_losses
