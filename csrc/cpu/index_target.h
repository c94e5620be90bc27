// The pass that weighs and checks class indices before a kernel trusts them.
#pragma once

#include "../core/compensated_sum.h"
#include "../core/index_target.h"
#include "vec.h"

namespace fused_losses::cpu {
namespace {

inline bool is_invalid(const IndexTarget& target, int64_t index) {
  return index != target.ignore_index && (index < 0 || index >= target.num_classes);
}

// A register of indices, as the comparisons of double have it.
using IndexVec = IntVec<double>;
constexpr int kIndexLanes = kLanes<double>;

template <class I>
inline IndexVec load_indices(const I* source) {
  typename VectorOf<I, kIndexLanes>::type indices;
  std::memcpy(&indices, source, sizeof(indices));
  return __builtin_convertvector(indices, IndexVec);
}

template <class I>
inline TargetScan count_targets(const IndexTarget& target, int64_t begin, int64_t end) {
  const I* data = static_cast<const I*>(target.data);
  const int64_t num_classes = target.num_classes;
  const int64_t ignore_index = target.ignore_index;
  IndexVec used_lanes{};  // minus their number
  IndexVec invalid_lanes{};
  int64_t position = begin;
  for (; position + kIndexLanes <= end; position += kIndexLanes) {
    const IndexVec index = load_indices(data + position);
    const IndexVec counts = index != ignore_index;
    used_lanes += counts;
    invalid_lanes |= counts & ((index < 0) | (index >= num_classes));
  }
  int64_t used = 0;
  bool invalid = false;
  for (int lane = 0; lane < kIndexLanes; ++lane) {
    used -= used_lanes[lane];
    invalid |= invalid_lanes[lane] != 0;
  }
  for (; position < end; ++position) {
    used += data[position] != ignore_index;
    invalid |= is_invalid(target, data[position]);
  }
  int64_t first_invalid = -1;
  for (position = begin; invalid && first_invalid < 0; ++position) {
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
