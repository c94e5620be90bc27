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
struct UnitAndSlope {
  Vec<A> unit;
  Vec<A> slope;
};

template <class A>
inline UnitAndSlope<A> unit_and_slope(A logit, A scale_in_unit, bool softcapped) {
  const Vec<A> scaled = broadcast(logit * scale_in_unit);
  if (!softcapped) return {scaled, broadcast(A(1))};
  const Tanh<A> tangent = tanh_and_derivative<true, A>(scaled);
  return {tangent.value, tangent.derivative};
}

// `ahead`: how many logits further the lines lie that are asked for.
template <class T>
FUSED_LOSSES_FLATTEN inline void write_scaled(const T* logits, Accumulation<T> scale, Accumulation<T>* units,
                                              int64_t count, int64_t ahead) {
  sweep<Accumulation<T>>(
      count,
      [&](int64_t i, int slot) {
        if (begins_line<T>(slot)) __builtin_prefetch(logits + i + ahead);  // Note [Prefetching]
        store(units + i, load(logits + i) * scale);
      },
      [&](int64_t i, int64_t rest) { store_partial(units + i, load_partial(logits + i, rest, 0) * scale, rest); });
}

// Whether any is large: without kLarge the tangents are then wrong. See Note [Tanh]. NaN gives NaN either way.
template <bool kLarge, bool kWantsSlopes, class T>
FUSED_LOSSES_FLATTEN inline bool write_tangents(const T* logits, Accumulation<T> scale, Accumulation<T>* units,
                                                Accumulation<T>* slopes, int64_t count, int64_t ahead) {
  using A = Accumulation<T>;
  Vec<A> largest[4] = {};  // of the squares
  sweep<A>(
      count,
      [&](int64_t i, int slot) {
        if (begins_line<T>(slot)) __builtin_prefetch(logits + i + ahead);  // Note [Prefetching]
        const Tanh<A> tangent = tanh_and_derivative<kLarge, A>(load(logits + i) * scale);
        store(units + i, tangent.value);
        if constexpr (kWantsSlopes) store(slopes + i, tangent.derivative);
        largest[slot] = max_of(tangent.square, largest[slot]);
      },
      [&](int64_t i, int64_t rest) {
        const Tanh<A> tangent = tanh_and_derivative<kLarge, A>(load_partial(logits + i, rest, A(0)) * scale);
        store_partial(units + i, tangent.value, rest);
        if constexpr (kWantsSlopes) store_partial(slopes + i, tangent.derivative, rest);
        largest[0] = max_of(tangent.square, largest[0]);
      });
  return max_lanes<A>(max_of<A>(largest)) > kTanhSmallSquare<A>;
}

// The units of softcapped logits, and their slopes. Where the last call met large ones, this one expects them.
template <class T>
class Tangents {
 public:
  using A = Accumulation<T>;

  template <bool kWantsSlopes>
  void write(const T* logits, A scale, A* units, A* slopes, int64_t count, int64_t ahead) {
    const bool may_be_wrong =
        !expects_large_ && write_tangents<false, kWantsSlopes>(logits, scale, units, slopes, count, ahead);
    if (expects_large_ || may_be_wrong) {
      expects_large_ = write_tangents<true, kWantsSlopes>(logits, scale, units, slopes, count, ahead);
    }
  }

 private:
  bool expects_large_ = false;
};

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
      : factor(unit_factor<A>(transform)), softcapped_(transform.softcap != 0), scale_(scale_in_unit<A>(transform)) {
    if (softcapped_) return;
    for (A& slope : slopes_) slope = A(1);
  }

  const A factor;

  // Of at most kMaxBlockUnits logits, until the next call.
  template <bool kWantsSlopes>
  const A* of_block(const T* logits, int64_t count) {
    if (softcapped_) {
      tangents_.template write<kWantsSlopes>(logits, scale_, units_, slopes_, count, 2 * count);
    } else {
      write_scaled(logits, scale_, units_, count, 2 * count);
    }
    return units_;
  }
  Slopes<A> slopes() const { return {slopes_}; }
  UnitAndSlope<A> of(A logit) const { return unit_and_slope(logit, scale_, softcapped_); }

 private:
  bool softcapped_;
  A scale_;
  Tangents<T> tangents_;
  alignas(64) A units_[kMaxBlockUnits];
  alignas(64) A slopes_[kMaxBlockUnits];
};

}  // namespace
}  // namespace fused_losses::cpu
