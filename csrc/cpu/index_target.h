// Class indices in memory: reading one, and the pass that weighs and checks them all before a kernel trusts them.
#pragma once

#include "../core/compensated_sum.h"
#include "../core/index_target.h"

namespace fused_losses::cpu {
namespace {

inline int64_t read_index(const IndexTarget& target, int64_t position) {
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

inline bool is_invalid(const IndexTarget& target, int64_t index) {
  return index != target.ignore_index && (index < 0 || index >= target.num_classes);
}

// Without branches and without a switch inside the loop, so that the compiler vectorises it.
template <class I>
inline TargetScan count_targets(const IndexTarget& target, int64_t begin, int64_t end) {
  const I* data = static_cast<const I*>(target.data);
  const int64_t num_classes = target.num_classes;
  const int64_t ignore_index = target.ignore_index;
  int64_t used = 0;
  int64_t invalid = 0;
  for (int64_t position = begin; position < end; ++position) {
    const int64_t index = data[position];
    const int64_t counts = index != ignore_index;
    used += counts;
    invalid |= counts & static_cast<int64_t>((index < 0) | (index >= num_classes));
  }
  int64_t first_invalid = -1;
  for (int64_t position = begin; invalid != 0 && first_invalid < 0; ++position) {
    if (is_invalid(target, data[position])) first_invalid = position;
  }
  return {static_cast<double>(used), first_invalid};
}

template <class A>
inline double sum_weights(const IndexTarget& target, int64_t begin, int64_t end) {
  CompensatedSum total;
  for (int64_t position = begin; position < end; ++position) {
    const int64_t index = read_index(target, position);
    if (index != target.ignore_index) {
      total.add(static_cast<double>(static_cast<const A*>(target.class_weight)[index]));
    }
  }
  return total.value();
}

}  // namespace
}  // namespace fused_losses::cpu
