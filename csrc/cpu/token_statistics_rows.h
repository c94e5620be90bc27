// The statistics of tokens and their gradient, a row at a time: see Note [Token statistics] in core/token_statistics.h.
// The row is swept in blocks that stay in the first-level cache, as in Note [One read of a row]: a block's largest
// logit, then its sums relative to the largest so far.
#pragma once

#include "../core/token_statistics.h"
#include "cross_entropy_row_sweeps.h"
#include "logit_transform.h"

namespace fused_losses::cpu {
namespace {

// z, bounded where exp(z) has become 0: products with that are then 0, and not NaN, for z = -inf. A NaN stays: see Note
// [NaN in maxima].
template <class A, class Transform>
inline Vec<A> shifted(const Transform& transform, Vec<A> unit, A shift) {
  return max_of(broadcast<A>(MathConstants<A>::kExpZero), (unit - shift) * transform.factor);
}

template <class A>
struct TokenSums {
  A sum;          // of exp(z), without the hole
  A sum_times_x;  // of exp(z) z
};

// Sums of a block relative to `shift`; kHole: the exponential of the class at `hole` is not summed.
template <bool kHole, class T, class Transform>
FUSED_LOSSES_FLATTEN inline TokenSums<Accumulation<T>> token_sums(const T* logits, int64_t count,
                                                                  const Transform& transform, Accumulation<T> shift,
                                                                  int64_t hole) {
  using A = Accumulation<T>;
  Vec<A> sum[4] = {};
  Vec<A> sum_times_x[4] = {};
  const auto add = [&](Vec<A> logit, int64_t i, int slot, IntVec<A> valid) {
    const Vec<A> z = shifted<A>(transform, transform.unit(logit), shift);
    Vec<A> exponential = select(valid, exp<A>(z), Vec<A>{});
    sum_times_x[slot] += exponential * z;
    sum[slot] += kHole ? without_lane<A>(exponential, hole - i) : exponential;
  };
  sweep<A>(
      count,
      [&](int64_t i, int slot) {
        if (begins_line<T>(slot)) __builtin_prefetch(logits + i + 2 * count);  // Note [Prefetching]
        add(load(logits + i), i, slot, IntVec<A>{} - 1);
      },
      [&](int64_t i, int64_t rest) { add(load_partial(logits + i, rest, A(0)), i, 0, first_lanes<A>(rest)); });
  return {sum_lanes<A>(sum_of<A>(sum)), sum_lanes<A>(sum_of<A>(sum_times_x))};
}

template <class T, class Transform>
FUSED_LOSSES_FLATTEN inline Accumulation<T> largest_key(const T* logits, int64_t count, const Transform& transform) {
  using A = Accumulation<T>;
  Vec<A> max[4];
  for (Vec<A>& part : max) part = broadcast(-kInfinity<A>);
  sweep<A>(
      count, [&](int64_t i, int slot) { max[slot] = max_of(transform.key(load(logits + i)), max[slot]); },
      [&](int64_t i, int64_t rest) {
        const Vec<A> key = transform.key(load_partial(logits + i, rest, A(0)));
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

template <class T, bool kSoftcapped>
class TokenRows {
 public:
  using A = Accumulation<T>;

  explicit TokenRows(const TokenStatisticsParams& params)
      : params_(params), transform_(params.logit_scale, params.softcap) {}

  void forward(int64_t position) {
    const T* logits = logits_of(position);
    const int64_t num_classes = params_.num_classes;
    const int64_t target = target_of(position);
    const A target_logit = target >= 0 ? load_scalar(logits + target) : A(0);
    const A target_key = transform_.key(broadcast(target_logit))[0];
    const A target_unit = transform_.unit(target_logit);
    const auto target_z = [&](A shift) { return (target_unit - shift) * transform_.factor; };

    A max_key = -kInfinity<A>;
    int64_t first_of_max = 0;
    // Relative to `shift`, the unit of the largest x so far.
    A shift = transform_.shift_of(max_key);
    double others = 0;
    double sum = 0;
    double sum_times_x = 0;
    for (int64_t first = 0; first < num_classes; first += kPageClasses) {
      const int64_t count = num_classes - first < kPageClasses ? num_classes - first : kPageClasses;
      const A block_key = largest_key(logits + first, count, transform_);
      if (block_key > max_key) {
        const A larger = transform_.shift_of(block_key);
        if (first > 0) {
          const double change = (static_cast<double>(shift) - static_cast<double>(larger)) * transform_.factor;
          const double factor = exp<A>(broadcast(static_cast<A>(change)))[0];
          sum_times_x = factor == 0 ? 0 : factor * (sum_times_x + change * sum);
          others *= factor;
          sum *= factor;
        }
        max_key = block_key;
        first_of_max = first;
        shift = larger;
      }
      const int64_t hole = target >= first && target < first + count ? target - first : -1;
      TokenSums<A> block;
      if (hole >= 0 && target_key == max_key && max_key != -kInfinity<A>) {
        block = token_sums<true>(logits + first, count, transform_, shift, hole);
        sum += 1;
      } else {
        block = token_sums<false>(logits + first, count, transform_, shift, -1);
        if (hole >= 0) {
          const A exponential = exp<A>(broadcast(target_z(shift)))[0];
          sum += exponential;
          block.sum -= exponential;
        }
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
    const bool is_infinite = !kSoftcapped && max_key == kInfinity<A> && nan_class < 0;
    write(params_.log_prob, position, target >= 0 ? target_z(shift) - log_sum : A(0));
    write(params_.log_sum_exp, position, is_infinite ? max_key : shift * transform_.factor + log_sum);
    write(params_.entropy, position, log_sum - static_cast<A>(sum_times_x) / rounded_sum);
    params_.argmax[position] =
        nan_class >= 0 ? nan_class : find_logit(logits, first_of_max, num_classes, transform_.logit_of(max_key));
    write(params_.row_max, position, shift);
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
    const A shift = read(params_.row_max, position);
    const A inverse_sum = A(1) / read(params_.row_sum, position);
    const A mean_x = read(params_.row_sum_times_x, position) * inverse_sum;
    const A constant = grad_log_sum_exp + grad_entropy * mean_x;
    write_gradient(logits, gradient, shift, (constant - grad_log_prob) * inverse_sum, -grad_entropy * inverse_sum);
    if (target < 0) return;
    const Vec<A> unit = transform_.unit(broadcast(load_scalar(logits + target)));
    const Vec<A> z = shifted<A>(transform_, unit, shift);
    const A probability = exp<A>(z)[0] * inverse_sum;
    const A derivative = probability * (constant - grad_entropy * z[0]) +
                         grad_log_prob * (read(params_.row_others, position) * inverse_sum);
    store_scalar(gradient + target, derivative * transform_.derivative(unit)[0]);
  }

 private:
  // gradient = exp(z) (a + b z) dx/dl
  FUSED_LOSSES_FLATTEN void write_gradient(const T* logits, T* gradient, A shift, A a, A b) const {
    const auto derivative = [&](Vec<A> logit) {
      const Vec<A> unit = transform_.unit(logit);
      const Vec<A> z = shifted<A>(transform_, unit, shift);
      return exp<A>(z) * (z * b + a) * transform_.derivative(unit);
    };
    sweep<A>(
        params_.num_classes,
        [&](int64_t i, int slot) {
          if (begins_line<T>(slot)) __builtin_prefetch(logits + i + kPageClasses);  // Note [Prefetching]
          store(gradient + i, derivative(load(logits + i)));
        },
        [&](int64_t i, int64_t rest) {
          store_partial(gradient + i, derivative(load_partial(logits + i, rest, A(0))), rest);
        });
  }

  const T* logits_of(int64_t position) const {
    return static_cast<const T*>(params_.logits) + params_.logits_layout.offset(place_of(position, params_.inner_size));
  }
  int64_t target_of(int64_t position) const {
    const int64_t index = read_index(params_.target, position);
    return index == params_.target.ignore_index ? -1 : index;
  }
  static void write(void* memory, int64_t position, A value) { static_cast<A*>(memory)[position] = value; }
  static A read(const void* memory, int64_t position) {
    return memory == nullptr ? A(0) : static_cast<const A*>(memory)[position];
  }

  const TokenStatisticsParams& params_;
  LogitTransform<A, kSoftcapped> transform_;
};

}  // namespace
}  // namespace fused_losses::cpu
