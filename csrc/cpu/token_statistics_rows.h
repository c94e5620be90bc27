// The statistics of tokens and their gradient, a row at a time: see Note [Token statistics] in core/token_statistics.h.
// The row is swept in blocks that stay in the first-level cache, as in Note [One read of a row]: a block's sums
// relative to the largest logit so far, and again where the block has a larger one.
#pragma once

#include "logit_units.h"
#include "token_statistics_positions.h"
#include "token_statistics_sweeps.h"

namespace fused_losses::cpu {
namespace {

template <class T, bool kTransformed>
class TokenRows : private TokenPositions<T> {
  using Base = TokenPositions<T>;
  using Base::factor_;
  using Base::logit_scale_;
  using Base::params_;
  using typename Base::A;

 public:
  explicit TokenRows(const TokenStatisticsParams& params)
      : Base(params), units_({params.logit_scale, params.softcap}) {}

  void forward(int64_t position) {
    const T* logits = Base::logits_of(position);
    const int64_t num_classes = params_.num_classes;
    const int64_t target = Base::target_of(position);
    const A target_unit = target >= 0 ? units_.of(load_scalar(logits + target)).unit[0] : A(0);

    const bool negated = params_.logit_scale < 0;
    A max = -kInfinity<A>;        // of the units so far
    A max_logit = -kInfinity<A>;  // with the sign of the scale; two of them may have one unit
    int64_t first_of_max = 0;
    double others = 0;
    double sum = 0;
    double sum_times_x = 0;
    for (int64_t first = 0; first < num_classes; first += kPageClasses) {
      const int64_t count = num_classes - first < kPageClasses ? num_classes - first : kPageClasses;
      const auto* units = units_.template of_block<false>(logits + first, count);
      const int64_t target_in_block = target >= first && target < first + count ? target - first : -1;
      const auto lanes = [&] {
        return token_lanes_beside(target_in_block, target_unit, units, count, max, factor_, 2 * count);
      };
      const A max_before = max;
      if (first == 0) max = max_lanes<A>(lane_maxima(units, count));
      TokenLanes<A> block = lanes();
      const A block_max = max_lanes<A>(block.max);
      if (block_max > max) {
        max = block_max;
        block = lanes();
      }
      if (first > 0 && max > max_before) {
        const double change =
            (static_cast<double>(finite_shift(max_before)) - static_cast<double>(finite_shift(max))) * factor_;
        const double factor = exp<A>(broadcast(static_cast<A>(change)))[0];
        sum_times_x = factor == 0 ? 0 : factor * (sum_times_x + change * sum);
        others *= factor;
        sum *= factor;
      }
      const A block_logit = kTransformed ? largest_logit(logits + first, count, negated) : block_max;
      if (block_logit > max_logit) {
        max_logit = block_logit;
        first_of_max = first;
      }
      A block_others = sum_lanes<A>(block.sum);
      if (target_in_block >= 0) {
        const A exponential = Base::target_exponential(IntVec<A>{} - 1, broadcast(target_unit), broadcast(max))[0];
        if (target_unit != max) block_others -= exponential;
        sum += exponential;
      }
      others += block_others;
      sum += block_others;
      sum_times_x += sum_lanes<A>(block.sum_times_x);
    }
    const TokenRowSums<A> sums{broadcast(max), broadcast(static_cast<A>(others)),
                               broadcast(static_cast<A>(sum_times_x))};
    Base::finish(position, 1, sums, IntVec<A>{} - (target >= 0 ? 1 : 0), broadcast(target_unit),
                 [&](int) { return find_logit(logits, first_of_max, num_classes, negated ? -max_logit : max_logit); });
  }

  void backward(int64_t position) {
    const int64_t target = Base::target_of(position);
    const A grad_log_prob = target >= 0 ? Base::read(params_.grad_log_prob, position) : A(0);
    const A grad_log_sum_exp = Base::read(params_.grad_log_sum_exp, position);
    const A grad_entropy = Base::read(params_.grad_entropy, position);
    T* gradient =
        static_cast<T*>(params_.gradient) + params_.gradient_layout.offset(place_of(position, params_.inner_size));
    if (grad_log_prob == 0 && grad_log_sum_exp == 0 && grad_entropy == 0) {
      std::memset(gradient, 0, static_cast<size_t>(params_.num_classes) * sizeof(T));
      return;
    }
    const T* logits = Base::logits_of(position);
    const A shift = Base::read(params_.row_max, position) * Base::sign_of_shift();
    const A inverse_sum = A(1) / Base::read(params_.row_sum, position);
    const A mean_x = Base::read(params_.row_sum_times_x, position) * inverse_sum;
    const A constant = grad_log_sum_exp + grad_entropy * mean_x;
    const A scale = inverse_sum * logit_scale_;  // the last is dx/dl, but for the slope
    write_gradient(logits, gradient, shift, (constant - grad_log_prob) * scale, -grad_entropy * scale);
    if (target < 0) return;
    const auto [unit, slope] = units_.of(load_scalar(logits + target));
    const Vec<A> z = bounded_difference(unit, shift, factor_);
    const A probability = exp<A>(z)[0] * inverse_sum;
    const A derivative = probability * (constant - grad_entropy * z[0]) +
                         grad_log_prob * (Base::read(params_.row_others, position) * inverse_sum);
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
      const Vec<A> z = bounded_difference(unit, shift, factor_);
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

  LogitUnits<T, kTransformed> units_;
};

}  // namespace
}  // namespace fused_losses::cpu
