// The units of a row's logits: see UnitTransform in kernels.h and Note [Units of a block].
//
// Note [Units of a block]
// The kernels of rows take x = factor * unit as they take logits times a scale, x - m being a difference of units times
// the factor. Where a unit is not the logit itself, a block of logits is first turned into units and slopes, which stay
// in the first-level cache. In one loop the tangent and the exponential are a chain of operations twice as long, of
// which the processor overlaps half as many.
#pragma once

#include "kernels.h"
#include "row_loop.h"
#include "vec_math.h"

namespace fused_losses::cpu {
namespace {

constexpr int64_t kMaxBlockUnits = 4096;

inline bool is_transformed(double logit_scale, double softcap) { return softcap != 0 || logit_scale < 0; }

// The derivative of a unit besides its slope.
template <class A>
inline A scale_in_unit(const UnitTransform& transform) {
  if (transform.softcap != 0) return static_cast<A>(transform.logit_scale / transform.softcap);
  return transform.logit_scale < 0 ? A(-1) : A(1);
}

template <class A>
inline A unit_factor(const UnitTransform& transform) {
  const double scale = transform.logit_scale;
  return static_cast<A>(transform.softcap != 0 ? transform.softcap : scale < 0 ? -scale : scale);
}

struct NoSlopes {
  static constexpr bool kAny = false;
  template <class V, class... Rest>
  V times(V value, int64_t, Rest...) const {
    return value;
  }
};

template <class A>
struct Slopes {
  static constexpr bool kAny = true;
  const A* slopes;
  Vec<A> times(Vec<A> value, int64_t i) const { return value * load(slopes + i); }
  Vec<A> times(Vec<A> value, int64_t i, int64_t rest) const { return value * load_partial(slopes + i, rest, A(0)); }
};

// A unit, and its derivative besides scale_in_unit.
template <class A>
using UnitAndSlope = TanhAndDerivative<A>;

template <bool kSoftcapped, class A>
inline UnitAndSlope<A> unit_and_slope(Vec<A> logit, A scale_in_unit) {
  if constexpr (kSoftcapped) {
    return tanh_and_derivative_of_half<A>(logit * (scale_in_unit + scale_in_unit));
  } else {
    return {logit * scale_in_unit, broadcast(A(1))};
  }
}

// The units of `count` logits. `ahead`: how many logits further the lines lie that are asked for.
template <bool kSoftcapped, bool kWantsSlopes, class T>
FUSED_LOSSES_FLATTEN inline void write_units(const T* logits, Accumulation<T> scale, Accumulation<T>* units,
                                             Accumulation<T>* slopes, int64_t count, int64_t ahead) {
  using A = Accumulation<T>;
  sweep<A>(
      count,
      [&](int64_t i, int slot) {
        if (begins_line<T>(slot)) __builtin_prefetch(logits + i + ahead);  // Note [Prefetching]
        const auto [unit, slope] = unit_and_slope<kSoftcapped>(load(logits + i), scale);
        store(units + i, unit);
        if constexpr (kWantsSlopes) store(slopes + i, slope);
      },
      [&](int64_t i, int64_t rest) {
        const auto [unit, slope] = unit_and_slope<kSoftcapped>(load_partial(logits + i, rest, A(0)), scale);
        store_partial(units + i, unit, rest);
        if constexpr (kWantsSlopes) store_partial(slopes + i, slope, rest);
      });
}

// Blocks of logits where x is these times a positive scale: the units are the logits.
template <class T, bool kTransformed>
class LogitUnits {
 public:
  using A = Accumulation<T>;

  explicit LogitUnits(const UnitTransform& transform) : factor(unit_factor<A>(transform)) {}

  const A factor;

  template <bool kWantsSlopes>
  const T* of_block(const T* logits, int64_t) {
    return logits;
  }
  NoSlopes slopes() const { return {}; }
  UnitAndSlope<A> of(A logit) const { return {broadcast(logit), broadcast(A(1))}; }
};

template <class T>
class LogitUnits<T, true> {
 public:
  using A = Accumulation<T>;

  explicit LogitUnits(const UnitTransform& transform)
      : factor(unit_factor<A>(transform)), softcapped_(transform.softcap != 0), scale_(scale_in_unit<A>(transform)) {}

  const A factor;

  // Of at most kMaxBlockUnits logits, until the next call.
  template <bool kWantsSlopes>
  const A* of_block(const T* logits, int64_t count) {
    if (softcapped_) {
      write_units<true, kWantsSlopes>(logits, scale_, units_, slopes_, count, 2 * count);
    } else {
      write_units<false, kWantsSlopes>(logits, scale_, units_, slopes_, count, 2 * count);
    }
    return units_;
  }
  Slopes<A> slopes() const { return {slopes_}; }
  UnitAndSlope<A> of(A logit) const {
    return softcapped_ ? unit_and_slope<true>(broadcast(logit), scale_)
                       : unit_and_slope<false>(broadcast(logit), scale_);
  }

 private:
  bool softcapped_;
  A scale_;
  alignas(64) A units_[kMaxBlockUnits];
  alignas(64) A slopes_[kMaxBlockUnits];
};

}  // namespace
}  // namespace fused_losses::cpu
