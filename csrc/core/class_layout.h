// Where the classes of one position lie in memory.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace fused_losses {

// position = outer * inner_size + inner
struct Place {
  int64_t outer;
  int64_t inner;
};

namespace {

FUSED_LOSSES_HOST_DEVICE constexpr Place place_of(int64_t position, int64_t inner_size) {
  if (position < inner_size) return {0, position};  // no division on the usual ways
  const int64_t outer = inner_size == 1 ? position : position / inner_size;
  return {outer, position - outer * inner_size};
}

}  // namespace

// Strides in elements.
struct ClassLayout {
  int64_t outer_stride = 0;
  int64_t class_stride = 0;
  int64_t inner_stride = 0;

  // Inlined also where nothing else is: Note [No shared symbols] in cpu/vec_types.h.
  FUSED_LOSSES_HOST_DEVICE FUSED_LOSSES_ALWAYS_INLINE constexpr int64_t offset(int64_t outer, int64_t inner) const {
    return outer * outer_stride + inner * inner_stride;
  }
  FUSED_LOSSES_HOST_DEVICE FUSED_LOSSES_ALWAYS_INLINE constexpr int64_t offset(const Place& place) const {
    return offset(place.outer, place.inner);
  }
};

}  // namespace fused_losses
