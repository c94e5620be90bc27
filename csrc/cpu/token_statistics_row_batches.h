// The statistics of tokens where classes are not many: a register of rows at a time, as in Note [Batches of rows].
// Their gradient has no sums over lanes and gains nothing from it.
#pragma once

#include "token_statistics_positions.h"
#include "transpose.h"

namespace fused_losses::cpu {
namespace {

template <class T>
class TokenRowBatch : private TokenPositions<T> {
  using Base = TokenPositions<T>;
  using Base::factor_;
  using Base::params_;
  using typename Base::A;

 public:
  static constexpr int kRows = kLanes<A>;

  explicit TokenRowBatch(const TokenStatisticsParams& params) : Base(params) {}

  // Of positions whose units are their logits: see Note [Units of a block].
  void forward(int64_t first, int count) {
    const int64_t num_classes = params_.num_classes;
    const T* logits[kRows];
    int64_t target[kRows];
    IntVec<A> has_target{};
    Vec<A> target_logit{};
    for (int r = 0; r < count; ++r) {
      logits[r] = Base::logits_of(first + r);
      target[r] = Base::target_of(first + r);
      if (target[r] < 0) continue;
      has_target[r] = -1;
      target_logit[r] = load_scalar(logits[r] + target[r]);
    }
    Vec<A> lanes[kRows] = {};
    for (int r = 0; r < count; ++r) lanes[r] = lane_maxima(logits[r], num_classes);
    const Vec<A> max = fold<A>(lanes, [](Vec<A> a, Vec<A> b) { return max_of(a, b); });

    Vec<A> sum[kRows] = {};
    Vec<A> sum_times_x[kRows] = {};
    for (int r = 0; r < count; ++r) {
      const TokenLanes<A> row =
          token_lanes_beside(target[r], target_logit[r], logits[r], num_classes, max[r], factor_, kRows * num_classes);
      sum[r] = row.sum;
      sum_times_x[r] = row.sum_times_x;
    }
    const auto add = [](Vec<A> a, Vec<A> b) { return a + b; };
    const Vec<A> summed = fold<A>(sum, add);
    const IntVec<A> is_hole = has_target & (target_logit == max);
    const TokenRowSums<A> sums{
        max, select(is_hole, summed, summed - Base::target_exponential(has_target, target_logit, max)),
        fold<A>(sum_times_x, add)};
    Base::finish(first, count, sums, has_target, target_logit,
                 [&](int r) { return find_logit(logits[r], 0, num_classes, max[r]); });
  }
};

}  // namespace
}  // namespace fused_losses::cpu
