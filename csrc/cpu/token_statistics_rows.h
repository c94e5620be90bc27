// The statistics of tokens and their gradient, a row at a time: see Note [Token statistics] in core/token_statistics.h.
// The row is swept in blocks that stay in the first-level cache, as in Note [One read of a row]: a block's sums
// relative to the largest logit so far, and again where the block has a larger one.
#pragma once

#include "../core/token_statistics.h"
#include "cross_entropy_row_sweeps.h"
#include "logit_units.h"

namespace fused_losses::cpu {
namespace {

// z, bounded where exp(z) has become 0: products with that are then 0, and not NaN, for z = -inf. A NaN stays: see Note
// [NaN in maxima].
template <class A>
inline Vec<A> bounded_difference(Vec<A> unit, A shift, A factor) {
  return max_of(broadcast<A>(MathConstants<A>::kExpZero), shifted_logit(unit, shift, factor));
}

template <class A>
struct TokenSums {
  A max;
  A sum;          // of exp(z), without the hole
  A sum_times_x;  // of exp(z) z
};

// Sums of a block relative to `shift`; kHole: the exponential of the class at `hole` is not summed.
template <bool kHole, class U>
FUSED_LOSSES_FLATTEN inline TokenSums<Accumulation<U>> token_sums(const U* units, int64_t count, Accumulation<U> shift,
                                                                  Accumulation<U> factor, int64_t hole) {
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
        if (begins_line<U>(slot)) __builtin_prefetch(units + i + 2 * count);  // Note [Prefetching]
        add(load(units + i), i, slot);
      },
      [&](int64_t i, int64_t rest) { add(load_partial(units + i, rest, -kInfinity<A>), i, 0); });
  return {max_lanes<A>(max_of(max_of(max[0], max[1]), max_of(max[2], max[3]))), sum_lanes<A>(sum_of<A>(sum)),
          sum_lanes<A>(sum_of<A>(sum_times_x))};
}

// The largest of the logits times the sign.
template <class T>
FUSED_LOSSES_FLATTEN inline Accumulation<T> largest_key(const T* logits, int64_t count, Accumulation<T> sign) {
  using A = Accumulation<T>;
  Vec<A> max[4];
  for (Vec<A>& part : max) part = broadcast(-kInfinity<A>);
  sweep<A>(
      count, [&](int64_t i, int slot) { max[slot] = max_of(load(logits + i) * sign, max[slot]); },
      [&](int64_t i, int64_t rest) {
        const Vec<A> key = load_partial(logits + i, rest, A(0)) * sign;
        max[0] = max_of(select(first_lanes<A>(rest), key, broadcast(-kInfinity<A>)), max[0]);
      });
  return max_lanes<A>(max_of(max_of(max[0], max[1]), max_of(max[2], max[3])));
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

template <class T, bool kTransformed>
class TokenRows {
 public:
  using A = Accumulation<T>;

  explicit TokenRows(const TokenStatisticsParams& params)
      : params_(params),
        units_({params.logit_scale, params.softcap}),
        sign_(params.logit_scale < 0 ? A(-1) : A(1)),
        logit_scale_(static_cast<A>(params.logit_scale)) {}

  void forward(int64_t position) {
    const T* logits = logits_of(position);
    const int64_t num_classes = params_.num_classes;
    const int64_t target = target_of(position);
    const A target_unit = target >= 0 ? units_.of(load_scalar(logits + target)).unit[0] : A(0);
    const auto target_z = [&](A shift) { return shifted_logit(target_unit, shift, units_.factor); };

    A max = -kInfinity<A>;      // of the units so far
    A max_key = -kInfinity<A>;  // of the logits, with the sign of the scale: two of them may have one unit
    int64_t first_of_max = 0;
    A shift = 0;
    double others = 0;
    double sum = 0;
    double sum_times_x = 0;
    for (int64_t first = 0; first < num_classes; first += kPageClasses) {
      const int64_t count = num_classes - first < kPageClasses ? num_classes - first : kPageClasses;
      const auto* units = units_.template of_block<false>(logits + first, count);
      const int64_t target_in_block = target >= first && target < first + count ? target - first : -1;
      // Where the target is the largest so far the others are summed without it: see Note [Confident rows].
      bool is_hole = false;
      const auto sums = [&] {
        shift = finite_shift(max);
        is_hole = target_in_block >= 0 && target_unit == max && max != -kInfinity<A>;
        return is_hole ? token_sums<true>(units, count, shift, units_.factor, target_in_block)
                       : token_sums<false>(units, count, shift, units_.factor, -1);
      };
      const A max_before = max;
      if (first == 0) max = max_lanes<A>(lane_maxima(units, count));
      TokenSums<A> block = sums();
      if (block.max > max) {
        max = block.max;
        block = sums();
      }
      if (first > 0 && max > max_before) {
        const double change =
            (static_cast<double>(finite_shift(max_before)) - static_cast<double>(shift)) * units_.factor;
        const double factor = exp<A>(broadcast(static_cast<A>(change)))[0];
        sum_times_x = factor == 0 ? 0 : factor * (sum_times_x + change * sum);
        others *= factor;
        sum *= factor;
      }
      const A block_key = kTransformed ? largest_key(logits + first, count, sign_) : block.max;
      if (block_key > max_key) {
        max_key = block_key;
        first_of_max = first;
      }
      if (is_hole) {
        sum += 1;
      } else if (target_in_block >= 0) {
        const A exponential = exp<A>(broadcast(target_z(shift)))[0];
        sum += exponential;
        block.sum -= exponential;
      }
      others += block.sum;
      sum += block.sum;
      sum_times_x += block.sum_times_x;
    }

    const A target_exponential = target >= 0 ? exp<A>(broadcast(target_z(shift)))[0] : A(0);
    const A rounded_others = static_cast<A>(others);
    const A rounded_sum = rounded_others + target_exponential;
    const A log_sum =
        log_of_sum<A>(broadcast(rounded_sum), broadcast(target_exponential), broadcast(rounded_others))[0];
    const int64_t nan_class = rounded_sum != rounded_sum ? find_logit(logits, 0, num_classes, rounded_sum) : -1;
    const bool is_infinite = params_.softcap == 0 && max == kInfinity<A> && nan_class < 0;
    write(params_.log_prob, position, target >= 0 ? target_z(shift) - log_sum : A(0));
    write(params_.log_sum_exp, position, is_infinite ? max : shift * units_.factor + log_sum);
    write(params_.entropy, position, log_sum - static_cast<A>(sum_times_x) / rounded_sum);
    params_.argmax[position] =
        nan_class >= 0 ? nan_class : find_logit(logits, first_of_max, num_classes, max_key * sign_);
    write(params_.row_max, position, shift * sign_of_shift());
    write(params_.row_sum, position, rounded_sum);
    write(params_.row_others, position, rounded_others);
    write(params_.row_sum_times_x, position, static_cast<A>(sum_times_x));
  }

  void backward(int64_t position) {
    const int64_t target = target_of(position);
    const A grad_log_prob = target >= 0 ? read(params_.grad_log_prob, position) : A(0);
    const A grad_log_sum_exp = read(params_.grad_log_sum_exp, position);
    const A grad_entropy = read(params_.grad_entropy, position);
    T* gradient =
        static_cast<T*>(params_.gradient) + params_.gradient_layout.offset(place_of(position, params_.inner_size));
    if (grad_log_prob == 0 && grad_log_sum_exp == 0 && grad_entropy == 0) {
      std::memset(gradient, 0, static_cast<size_t>(params_.num_classes) * sizeof(T));
      return;
    }
    const T* logits = logits_of(position);
    const A shift = read(params_.row_max, position) * sign_of_shift();
    const A inverse_sum = A(1) / read(params_.row_sum, position);
    const A mean_x = read(params_.row_sum_times_x, position) * inverse_sum;
    const A constant = grad_log_sum_exp + grad_entropy * mean_x;
    const A scale = inverse_sum * logit_scale_;  // the last is dx/dl, but for the slope
    write_gradient(logits, gradient, shift, (constant - grad_log_prob) * scale, -grad_entropy * scale);
    if (target < 0) return;
    const auto [unit, slope] = units_.of(load_scalar(logits + target));
    const Vec<A> z = bounded_difference(unit, shift, units_.factor);
    const A probability = exp<A>(z)[0] * inverse_sum;
    const A derivative = probability * (constant - grad_entropy * z[0]) +
                         grad_log_prob * (read(params_.row_others, position) * inverse_sum);
    store_scalar(gradient + target, derivative * slope[0] * logit_scale_);
  }

 private:
  void write_gradient(const T* logits, T* gradient, A shift, A a, A b) {
    for (int64_t first = 0; first < params_.num_classes; first += kPageClasses) {
      const int64_t rest = params_.num_classes - first;
      const int64_t count = rest < kPageClasses ? rest : kPageClasses;
      const auto* units = units_.template of_block<true>(logits + first, count);
      write_block_gradient(units, gradient + first, count, shift, a, b);
    }
  }

  // gradient = exp(z) (a + b z) slope
  template <class U>
  FUSED_LOSSES_FLATTEN void write_block_gradient(const U* units, T* gradient, int64_t count, A shift, A a, A b) const {
    const auto derivative = [&](Vec<A> unit) {
      const Vec<A> z = bounded_difference(unit, shift, units_.factor);
      return exp<A>(z) * (z * b + a);
    };
    const auto slopes = units_.slopes();
    sweep<A>(
        count,
        [&](int64_t i, int slot) {
          if (begins_line<U>(slot)) __builtin_prefetch(units + i + count);  // Note [Prefetching]
          store(gradient + i, slopes.times(derivative(load(units + i)), i));
        },
        [&](int64_t i, int64_t rest) {
          const Vec<A> unit = load_partial(units + i, rest, A(0));
          store_partial(gradient + i, slopes.times(derivative(unit), i, rest), rest);
        });
  }

  const T* logits_of(int64_t position) const {
    return static_cast<const T*>(params_.logits) + params_.logits_layout.offset(place_of(position, params_.inner_size));
  }
  int64_t target_of(int64_t position) const {
    const int64_t index = read_index(params_.target, position);
    return index == params_.target.ignore_index ? -1 : index;
  }
  // Between passes it is a tangent, or a logit: the unit less its sign.
  A sign_of_shift() const { return params_.softcap == 0 ? sign_ : A(1); }
  static void write(void* memory, int64_t position, A value) { static_cast<A*>(memory)[position] = value; }
  static A read(const void* memory, int64_t position) {
    return memory == nullptr ? A(0) : static_cast<const A*>(memory)[position];
  }

  const TokenStatisticsParams& params_;
  LogitUnits<T, kTransformed> units_;
  const A sign_;  // of logit_scale
  const A logit_scale_;
};

}  // namespace
}  // namespace fused_losses::cpu
