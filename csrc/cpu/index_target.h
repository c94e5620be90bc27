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

// A few weights at a time are added plainly, four sums side by side: a rounding or two more than if all were
// compensated.
template <class I, class A>
inline double sum_weights(const IndexTarget& target, int64_t begin, int64_t end) {
  constexpr int64_t kChunk = 16;
  const I* data = static_cast<const I*>(target.data);
  const A* class_weight = static_cast<const A*>(target.class_weight);
  const int64_t ignore_index = target.ignore_index;
  const auto weight_at = [=](int64_t position) -> double {
    const int64_t index = data[position];
    return index != ignore_index ? class_weight[index] : A(0);
  };
  CompensatedSum total;
  int64_t position = begin;
  for (; position + kChunk <= end; position += kChunk) {
    double sums[4] = {};
    for (int64_t i = 0; i < kChunk; i += 4) {
      for (int64_t j = 0; j < 4; ++j) sums[j] += weight_at(position + i + j);
    }
    total.add((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  for (; position < end; ++position) total.add(weight_at(position));
  return total.value();
}

// What the targets are, from their type on.
template <class I>
inline TargetScan scan(const IndexTarget& target, int64_t begin, int64_t end) {
  TargetScan result = count_targets<I>(target, begin, end);
  if (target.class_weight != nullptr && result.first_invalid < 0) {
    result.weight =
        target.double_weight ? sum_weights<I, double>(target, begin, end) : sum_weights<I, float>(target, begin, end);
  }
  return result;
}

}  // namespace
}  // namespace fused_losses::cpu
