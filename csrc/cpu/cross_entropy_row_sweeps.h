// The loops over the contiguous classes of one row, or of a block of it.
#pragma once

#include "cross_entropy_target.h"
#include "logit_units.h"
#include "row_loop.h"

namespace fused_losses::cpu {
namespace {

template <class T>
FUSED_LOSSES_FLATTEN inline Vec<Accumulation<T>> lane_maxima(const T* x, int64_t count) {
  using A = Accumulation<T>;
  Vec<A> max[4];
  for (Vec<A>& part : max) part = broadcast(-kInfinity<A>);
  sweep<A>(
      count, [&](int64_t i, int slot) { max[slot] = max_of(load(x + i), max[slot]); },
      [&](int64_t i, int64_t rest) { max[0] = max_of(load_partial(x + i, rest, -kInfinity<A>), max[0]); });
  return max_of<A>(max);
}

// The statistics of the classes that fall into each lane.
template <class A>
struct LaneStatistics {
  Vec<A> max;
  Vec<A> sum;           // of exp(x - m)
  Vec<A> mass;          // of q, where it depends on the row
  Vec<A> mass_times_x;  // of q (x - m)
};

template <class A>
inline Vec<A> without_lane(Vec<A> value, int64_t lane) {
  const IntVec<A> lanes = __builtin_convertvector(lane_numbers<A>(), IntVec<A>);
  return select(lanes == static_cast<Integer<A>>(lane), Vec<A>{}, value);
}

// kHole: the exponential of the class at `hole` is not summed. `ahead`: how many classes further the lines lie that are
// asked for. The stash has the exponentials times their slopes, which is all that the gradient of a point mass needs;
// that of a dense mass needs the slopes besides.
template <bool kStash, bool kHole, class T, class Mass, class Slopes>
FUSED_LOSSES_FLATTEN inline LaneStatistics<Accumulation<T>> lane_sums(const T* x, int64_t first_class, int64_t count,
                                                                      const Mass& mass, const Slopes& slopes,
                                                                      Accumulation<T>* stash, Accumulation<T> shift,
                                                                      Accumulation<T> logit_scale, int64_t ahead,
                                                                      int64_t hole) {
  using A = Accumulation<T>;
  static_assert(!(Slopes::kAny && Mass::kDense), "the stash is not enough");
  constexpr bool kAsksForMass = Mass::kReadsProbability && (!kStash || !kSameType<T, A>);
  Vec<A> max[4];
  for (Vec<A>& part : max) part = broadcast(-kInfinity<A>);
  Vec<A> sum[4] = {};
  Vec<A> mass_sum[4] = {};
  Vec<A> mass_times_x[4] = {};
  sweep<A>(
      count,
      [&](int64_t i, int slot) {
        if (begins_line<T>(slot)) {  // Note [Prefetching]
          __builtin_prefetch(x + i + ahead);
          if constexpr (kAsksForMass) __builtin_prefetch(mass.target + first_class + i + kPageClasses);
        }
        const Vec<A> value = load(x + i);
        max[slot] = max_of(value, max[slot]);
        const Vec<A> shifted = shifted_logit(value, shift, logit_scale);
        const Vec<A> exponential = exp<A>(shifted);
        sum[slot] += kHole ? without_lane<A>(exponential, hole - i) : exponential;
        if constexpr (kStash) store(stash + i, slopes.times(exponential, i));
        if constexpr (Mass::kDense) {
          const Vec<A> q = mass.at(first_class + i);
          if constexpr (Mass::kReadsProbability) mass_sum[slot] += q;
          mass_times_x[slot] += q * shifted;
        }
      },
      [&](int64_t i, int64_t rest) {
        const Vec<A> value = load_partial(x + i, rest, -kInfinity<A>);
        max[0] = max_of(value, max[0]);
        const Vec<A> shifted = shifted_logit(value, shift, logit_scale);
        const Vec<A> exponential = exp<A>(shifted);
        sum[0] += kHole ? without_lane<A>(exponential, hole - i) : exponential;
        if constexpr (kStash) store_partial(stash + i, slopes.times(exponential, i, rest), rest);
        if constexpr (Mass::kDense) {
          const IntVec<A> valid = first_lanes<A>(rest);
          const Vec<A> q = mass.at(first_class + i, rest);
          if constexpr (Mass::kReadsProbability) mass_sum[0] += select(valid, q, Vec<A>{});
          mass_times_x[0] += select(valid, q * shifted, Vec<A>{});
        }
      });
  return {max_of<A>(max), sum_of<A>(sum), sum_of<A>(mass_sum), sum_of<A>(mass_times_x)};
}

// The same, without the exponential of the class at number `target`, -1 for none, where that is the largest logit so
// far; elsewhere it can be subtracted from the sum. See Note [Confident rows].
template <bool kStash, class T, class Mass, class Slopes>
inline LaneStatistics<Accumulation<T>> lane_sums_beside(int64_t target, Accumulation<T> target_logit, const T* x,
                                                        int64_t first_class, int64_t count, const Mass& mass,
                                                        const Slopes& slopes, Accumulation<T>* stash,
                                                        Accumulation<T> max, Accumulation<T> logit_scale,
                                                        int64_t ahead) {
  const Accumulation<T> shift = finite_shift(max);
  if (target >= 0 && target_logit == max) {
    return lane_sums<kStash, true>(x, first_class, count, mass, slopes, stash, shift, logit_scale, ahead, target);
  }
  return lane_sums<kStash, false>(x, first_class, count, mass, slopes, stash, shift, logit_scale, ahead, target);
}

// exponential * factor - q * scale for a register of classes, or for the `rest` of them.
template <class Mass, class A, class... Rest>
inline Vec<A> derivative(Vec<A> exponential, A factor, const Mass& mass, A scale, int64_t c, Rest... rest) {
  if constexpr (Mass::kDense) {
    return multiply_subtract(exponential, broadcast(factor), mass.at(c, rest...) * scale);
  } else {
    return exponential * factor;
  }
}

// gradient = stash * factor - q * scale for the classes [first_class, first_class + count).
template <bool kStream, class T, class Mass>
FUSED_LOSSES_FLATTEN inline void gradient_from_stash(const Accumulation<T>* stash, T* gradient, int64_t first_class,
                                                     int64_t count, const Mass& mass, Accumulation<T> factor,
                                                     Accumulation<T> scale) {
  using A = Accumulation<T>;
  const auto whole = [&](int64_t i) {
    return derivative<Mass, A>(load(stash + i), factor, mass, scale, first_class + i);
  };
  const auto partial = [&](int64_t i, int64_t rest) {
    const Vec<A> exponential = load_partial(stash + i, rest, A(0));
    store_partial(gradient + i, derivative<Mass, A>(exponential, factor, mass, scale, first_class + i, rest), rest);
  };
  int64_t begin = 0;
  if constexpr (kStream) {
    const int64_t head = elements_to_alignment(gradient);
    if (head > 0 && head < count) {
      partial(0, head);
      begin = head;
    }
  }
  sweep<A>(
      count - begin,
      [&](int64_t i, int) {
        if constexpr (kStream) {
          stream(gradient + begin + i, whole(begin + i));
        } else {
          store(gradient + begin + i, whole(begin + i));
        }
      },
      [&](int64_t i, int64_t rest) { partial(begin + i, rest); });
}

// gradient = exp(x - m) * slope * factor - q * scale for the classes [first_class, first_class + count).
template <class T, class G, class Mass, class Slopes>
FUSED_LOSSES_FLATTEN inline void gradient_from_logits(const T* x, G* gradient, int64_t first_class, int64_t count,
                                                      const Mass& mass, const Slopes& slopes, Accumulation<T> shift,
                                                      Accumulation<T> logit_scale, Accumulation<T> factor,
                                                      Accumulation<T> scale) {
  using A = Accumulation<T>;
  sweep<A>(
      count,
      [&](int64_t i, int slot) {
        if (begins_line<T>(slot)) __builtin_prefetch(x + i + kPageClasses);  // Note [Prefetching]
        const Vec<A> exponential = slopes.times(exp<A>(shifted_logit(load(x + i), shift, logit_scale)), i);
        store(gradient + i, derivative<Mass, A>(exponential, factor, mass, scale, first_class + i));
      },
      [&](int64_t i, int64_t rest) {
        const Vec<A> shifted = shifted_logit(load_partial(x + i, rest, A(0)), shift, logit_scale);
        const Vec<A> exponential = slopes.times(exp<A>(shifted), i, rest);
        store_partial(gradient + i, derivative<Mass, A>(exponential, factor, mass, scale, first_class + i, rest), rest);
      });
}

// At the target class, without the scale.
template <class Mass, class A>
inline A gradient_at_target(A row_mass, const Mass& mass, int64_t target_class, A point, A p, A others) {
  const A q = Mass::kDense ? mass.at(target_class, 1)[0] : A(0);
  return derivative_at_target(p, row_mass, q, point * others);
}

// The gradient of an ignored row is 0 * softmax: zeros, or NaN throughout where the softmax is NaN (as in torch), which
// an infinite logit makes it unless it is softcapped: the largest, or with a negative scale the smallest.
template <class T>
FUSED_LOSSES_FLATTEN inline void ignored_gradient(const T* x, T* gradient, int64_t num_classes,
                                                  const UnitTransform& transform) {
  using A = Accumulation<T>;
  const A sign = transform.logit_scale < 0 ? A(-1) : A(1);
  IntVec<A> is_nan[4] = {};
  Vec<A> max[4];
  for (Vec<A>& part : max) part = broadcast(-kInfinity<A>);
  const auto inspect = [&](Vec<A> value, int slot) {
    max[slot] = max_of(value * sign, max[slot]);
    is_nan[slot] |= value != value;
  };
  sweep<A>(
      num_classes, [&](int64_t i, int slot) { inspect(load(x + i), slot); },
      [&](int64_t i, int64_t rest) { inspect(load_partial(x + i, rest, -kInfinity<A> * sign), 0); });
  const A row_max = max_lanes<A>(max_of<A>(max));
  const bool is_infinite = row_max == kInfinity<A> || row_max == -kInfinity<A>;
  const bool undefined =
      any_lane(is_nan[0] | is_nan[1] | is_nan[2] | is_nan[3]) || (is_infinite && transform.softcap == 0);
  const Vec<A> value = broadcast(undefined ? static_cast<A>(__builtin_nan("")) : A(0));
  sweep<A>(
      num_classes, [&](int64_t i, int) { store(gradient + i, value); },
      [&](int64_t i, int64_t rest) { store_partial(gradient + i, value, rest); });
}

}  // namespace
}  // namespace fused_losses::cpu
