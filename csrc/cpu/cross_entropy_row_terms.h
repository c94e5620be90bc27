// The terms of Note [Terms of a row] in core/cross_entropy.h, from the statistics of a register of rows.
#pragma once

#include "../core/cross_entropy.h"
#include "logit_units.h"

namespace fused_losses::cpu {
namespace {

inline bool has_row_terms(const CrossEntropyParams& params) {
  return params.lse_square_scale != 0 || params.focal_gamma != 0;
}

// What the gradient of a row is multiplied by besides its own factor. In one order, so that a forward, which has the
// grad_output that is expected, and a backward, which has the row's own, give the same bits.
template <class A>
class GradientScale {
 public:
  explicit GradientScale(const CrossEntropyParams& params)
      : common_(static_cast<A>(params.gradient_scale) * static_cast<A>(params.expected_grad_output)),
        logit_scale_(static_cast<A>(params.logit_scale)) {}

  A of_row(A grad_output = A(1)) const { return common_ * grad_output * logit_scale_; }

 private:
  A common_;
  A logit_scale_;  // dx/dl, but for a slope
};

// What is known of a row, without a target class: others = sum, target_exponential = 0.
template <class A>
struct RowSums {
  Vec<A> shift;  // the unit of m: see UnitTransform
  Vec<A> sum;
  Vec<A> others;
  Vec<A> target_exponential;  // exp(shifted_target)
  Vec<A> shifted_target;      // x_t - m
};

// A forward and its backward compute it from the same statistics, and must agree to the bit: what a compiler could
// contract in two ways is said.
template <class A>
class RowTerms {
 public:
  RowTerms(const CrossEntropyParams& params, const RowSums<A>& sums)
      : lse_square_scale_(static_cast<A>(params.lse_square_scale)), focal_gamma_(static_cast<A>(params.focal_gamma)) {
    const Vec<A> log_sum = log_of_sum<A>(sums.sum, sums.target_exponential, sums.others);
    const A factor = unit_factor<A>({params.logit_scale, params.softcap});
    log_sum_exp_ = multiply_subtract(sums.shift, broadcast(factor), -log_sum);
    if (focal_gamma_ == 0) return;
    p_ = sums.target_exponential / sums.sum;
    complement_ = sums.others / sums.sum;
    surprise_ = log_sum - sums.shifted_target;
    power_ = exp<A>(log<A>(complement_) * focal_gamma_);
  }

  // The whole loss of a row, of which this is all but the terms here.
  Vec<A> loss(Vec<A> without_terms) const {
    const Vec<A> loss = focal_gamma_ == 0 ? without_terms : without_terms * power_;
    if (lse_square_scale_ == 0) return loss;
    return multiply_subtract(log_sum_exp_ * lse_square_scale_, log_sum_exp_, -loss);
  }

  // e, which p is multiplied by besides the masses.
  Vec<A> mass() const {
    return lse_square_scale_ == 0 ? Vec<A>{} : log_sum_exp_ * (lse_square_scale_ + lse_square_scale_);
  }

  // y' of the point mass y.
  Vec<A> point_mass(Vec<A> mass) const {
    if (focal_gamma_ == 0) return mass;
    const Vec<A> ratio = select(complement_ == Vec<A>{}, broadcast(A(1)), surprise_ / complement_);
    const Vec<A> slope = select(p_ == Vec<A>{}, Vec<A>{}, p_ * ratio);  // p log p is 0 where p is
    return mass * power_ * multiply_subtract(slope, broadcast(focal_gamma_), broadcast(A(-1)));
  }

 private:
  A lse_square_scale_;
  A focal_gamma_;
  Vec<A> log_sum_exp_;
  Vec<A> p_{};
  Vec<A> complement_{};  // 1 - p
  Vec<A> surprise_{};    // -log p
  Vec<A> power_{};       // (1 - p)^focal_gamma
};

}  // namespace
}  // namespace fused_losses::cpu
