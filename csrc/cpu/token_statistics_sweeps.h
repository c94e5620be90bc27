// The loops of the statistics of tokens over the contiguous classes of one row, or of a block of it.
#pragma once

#include "cross_entropy_row_sweeps.h"

namespace fused_losses::cpu {
namespace {

// z, bounded where exp(z) has become 0: products with that are then 0, and not NaN, for z = -inf. A NaN stays: see Note
// [NaN in maxima].
template <class A>
inline Vec<A> bounded_difference(Vec<A> unit, A shift, A factor) {
  return max_of(broadcast<A>(MathConstants<A>::kExpZero), shifted_logit(unit, shift, factor));
}

// Of the classes that fall into each lane.
template <class A>
struct TokenLanes {
  Vec<A> max;
  Vec<A> sum;          // of exp(z), without the hole
  Vec<A> sum_times_x;  // of exp(z) z
};

// Sums of a block relative to `shift`; kHole: the exponential of the class at `hole` is not summed. `ahead`: how many
// classes further the lines lie that are asked for.
template <bool kHole, class U>
FUSED_LOSSES_FLATTEN inline TokenLanes<Accumulation<U>> token_lanes(const U* units, int64_t count,
                                                                    Accumulation<U> shift, Accumulation<U> factor,
                                                                    int64_t ahead, int64_t hole) {
  using A = Accumulation<U>;
  Vec<A> max[4];
  for (Vec<A>& part : max) part = broadcast(-kInfinity<A>);
  Vec<A> sum[4] = {};
  Vec<A> sum_times_x[4] = {};
  const auto add = [&](Vec<A> unit, int64_t i, int slot) {
    max[slot] = max_of(unit, max[slot]);
    const Vec<A> z = bounded_difference(unit, shift, factor);
    const Vec<A> exponential = exp<A>(z);
    sum_times_x[slot] += exponential * z;
    sum[slot] += kHole ? without_lane<A>(exponential, hole - i) : exponential;
  };
  sweep<A>(
      count,
      [&](int64_t i, int slot) {
        if (begins_line<U>(slot)) __builtin_prefetch(units + i + ahead);  // Note [Prefetching]
        add(load(units + i), i, slot);
      },
      [&](int64_t i, int64_t rest) { add(load_partial(units + i, rest, -kInfinity<A>), i, 0); });
  return {max_of<A>(max), sum_of<A>(sum), sum_of<A>(sum_times_x)};
}

// The same, without the exponential of the class at number `target`, -1 for none, where that is the largest logit so
// far; elsewhere it can be subtracted from the sum. See Note [Confident rows].
template <class U>
inline TokenLanes<Accumulation<U>> token_lanes_beside(int64_t target, Accumulation<U> target_unit, const U* units,
                                                      int64_t count, Accumulation<U> max, Accumulation<U> factor,
                                                      int64_t ahead) {
  const Accumulation<U> shift = finite_shift(max);
  return target >= 0 && target_unit == max ? token_lanes<true>(units, count, shift, factor, ahead, target)
                                           : token_lanes<false>(units, count, shift, factor, ahead, -1);
}

// The largest of the logits, or of the negated ones. Negated by their sign bits: a product with -1 would make 0 of a
// subnormal one.
template <class T>
FUSED_LOSSES_FLATTEN inline Accumulation<T> largest_logit(const T* logits, int64_t count, bool negated) {
  using A = Accumulation<T>;
  Vec<A> max[4];
  for (Vec<A>& part : max) part = broadcast(-kInfinity<A>);
  const auto add = [&](Vec<A> logit, int slot) { max[slot] = max_of(negated ? -logit : logit, max[slot]); };
  sweep<A>(
      count, [&](int64_t i, int slot) { add(load(logits + i), slot); },
      [&](int64_t i, int64_t rest) { add(load_partial(logits + i, rest, negated ? kInfinity<A> : -kInfinity<A>), 0); });
  return max_lanes<A>(max_of<A>(max));
}

// The first class of [first, count) whose logit is the given one, NaN included, or -1.
template <class T>
FUSED_LOSSES_FLATTEN inline int64_t find_logit(const T* logits, int64_t first, int64_t count, Accumulation<T> wanted) {
  using A = Accumulation<T>;
  const bool wants_nan = wanted != wanted;
  for (int64_t i = first; i < count; i += kLanes<A>) {
    const int64_t rest = count - i;
    const Vec<A> values = rest >= kLanes<A> ? load(logits + i) : load_partial(logits + i, rest, A(0));
    IntVec<A> found = wants_nan ? values != values : values == broadcast(wanted);
    if (rest < kLanes<A>) found &= first_lanes<A>(rest);
    if (!any_lane(found)) continue;
    for (int lane = 0; lane < kLanes<A>; ++lane) {
      if (found[lane]) return i + lane;
    }
  }
  return -1;
}

}  // namespace
}  // namespace fused_losses::cpu
