// Class indices as targets: what cross-entropy and NLL read of them.
#pragma once

#include <cstdint>

#include "element_types.h"
#include "host_device.h"

namespace fused_losses {

struct IndexTarget {
  const void* data = nullptr;
  IndexType type = IndexType::Int64;
  int64_t num_classes = 0;
  int64_t ignore_index = 0;
  const void* class_weight = nullptr;  // [num_classes] in the accumulation type, or null
  bool double_weight = false;          // the accumulation type is double
};

namespace {

FUSED_LOSSES_HOST_DEVICE inline int64_t read_index(const IndexTarget& target, int64_t position) {
  switch (target.type) {
    case IndexType::Int64:
      return static_cast<const int64_t*>(target.data)[position];
    case IndexType::Int32:
      return static_cast<const int32_t*>(target.data)[position];
    case IndexType::UInt8:
      return static_cast<const uint8_t*>(target.data)[position];
  }
  __builtin_unreachable();
}

}  // namespace

// What one pass over targets finds: their weights, and the first one that is no class.
struct TargetScan {
  double weight;
  int64_t first_invalid;  // position, or -1
};

}  // namespace fused_losses
