// What is one number a position in the statistics of tokens: target, results, statistics for the backward. SIMD along
// the positions.
#pragma once

#include "../core/token_statistics.h"
#include "logit_units.h"
#include "token_statistics_sweeps.h"

namespace fused_losses::cpu {
namespace {

// What is summed of a register of rows.
template <class A>
struct TokenRowSums {
  Vec<A> max;          // of the units
  Vec<A> others;       // S': see Note [Confident rows] in core/cross_entropy.h
  Vec<A> sum_times_x;  // T
};

template <class T>
class TokenPositions {
 protected:
  using A = Accumulation<T>;

  explicit TokenPositions(const TokenStatisticsParams& params)
      : params_(params),
        sign_(params.logit_scale < 0 ? A(-1) : A(1)),
        logit_scale_(static_cast<A>(params.logit_scale)),
        factor_(unit_factor<A>({params.logit_scale, params.softcap})) {}

  const T* logits_of(int64_t position) const {
    return static_cast<const T*>(params_.logits) + params_.logits_layout.offset(place_of(position, params_.inner_size));
  }
  int64_t target_of(int64_t position) const {
    const int64_t index = read_index(params_.target, position);
    return index == params_.target.ignore_index ? -1 : index;
  }
  // Between passes the shift is a tangent, or a logit: the unit less its sign.
  A sign_of_shift() const { return params_.softcap == 0 ? sign_ : A(1); }

  // z of the targets, and exp(z), which is 0 where there is none.
  Vec<A> target_z(Vec<A> target_unit, Vec<A> max) const {
    return shifted_logit(target_unit, finite_shifts<A>(max), factor_);
  }
  Vec<A> target_exponential(IntVec<A> has_target, Vec<A> target_unit, Vec<A> max) const {
    return select(has_target, exp<A>(target_z(target_unit, max)), Vec<A>{});
  }

  // Writes what there is to know of the positions [first, first + count). first_of_max(r) is the first class of the
  // largest logit, where no logit of row r is NaN.
  template <class FirstOfMax>
  void finish(int64_t first, int count, const TokenRowSums<A>& rows, IntVec<A> has_target, Vec<A> target_unit,
              const FirstOfMax& first_of_max) const {
    const Vec<A> shift = finite_shifts<A>(rows.max);
    const Vec<A> exponential = target_exponential(has_target, target_unit, rows.max);
    const Vec<A> sum = rows.others + exponential;
    const Vec<A> log_sum = log_of_sum<A>(sum, exponential, rows.others);
    Vec<A> log_sum_exp = shift * factor_ + log_sum;
    for (int r = 0; r < count; ++r) {
      int64_t nan_class = -1;
      if (sum[r] != sum[r]) {  // of a NaN, or of an infinity
        nan_class = find_logit(logits_of(first + r), 0, params_.num_classes, sum[r]);
        if (nan_class < 0 && params_.softcap == 0 && rows.max[r] == kInfinity<A>) log_sum_exp[r] = kInfinity<A>;
      }
      params_.argmax[first + r] = nan_class >= 0 ? nan_class : first_of_max(r);
    }
    write(params_.log_prob, first, count, select(has_target, target_z(target_unit, rows.max) - log_sum, Vec<A>{}));
    write(params_.log_sum_exp, first, count, log_sum_exp);
    write(params_.entropy, first, count, log_sum - rows.sum_times_x / sum);
    write(params_.row_max, first, count, shift * sign_of_shift());
    write(params_.row_sum, first, count, sum);
    write(params_.row_others, first, count, rows.others);
    write(params_.row_sum_times_x, first, count, rows.sum_times_x);
  }

  static A read(const void* memory, int64_t position) {
    return memory == nullptr ? A(0) : static_cast<const A*>(memory)[position];
  }

  const TokenStatisticsParams& params_;
  const A sign_;  // of logit_scale
  const A logit_scale_;
  const A factor_;  // x = factor * unit

 private:
  static void write(void* memory, int64_t first, int count, Vec<A> values) {
    std::memcpy(static_cast<A*>(memory) + first, &values, static_cast<size_t>(count) * sizeof(A));
  }
};

}  // namespace
}  // namespace fused_losses::cpu
