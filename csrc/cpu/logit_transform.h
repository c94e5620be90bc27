// What softmax is taken of: logit_scale * l, or softcap * tanh(logit_scale * l / softcap).
#pragma once

#include "vec_math.h"

namespace fused_losses::cpu {
namespace {

// x is a factor times a unit: the logit or its tangent. Differences are taken of units, so that the largest x has z = 0
// whatever the compiler contracts.
template <class A, bool kSoftcapped>
class LogitTransform {
 public:
  LogitTransform(double logit_scale, double softcap)
      : factor(static_cast<A>(kSoftcapped ? softcap : logit_scale)),
        scale_(static_cast<A>(logit_scale)),
        sign_(logit_scale < 0 ? A(-1) : A(1)),
        scale_in_cap_(kSoftcapped ? static_cast<A>(logit_scale / softcap) : A(0)) {}

  const A factor;

  // Logits in the order of x.
  Vec<A> key(Vec<A> logit) const { return logit * sign_; }
  A logit_of(A key) const { return key * sign_; }

  Vec<A> unit(Vec<A> logit) const {
    if constexpr (kSoftcapped) {
      return tanh<A>(logit * scale_in_cap_);
    } else {
      return logit;
    }
  }
  A unit(A logit) const { return unit(broadcast(logit))[0]; }

  // The unit of the largest x; where all are -inf any number, so that their exponentials become 0, not NaN.
  A shift_of(A max_key) const { return !kSoftcapped && max_key == -kInfinity<A> ? A(0) : unit(logit_of(max_key)); }

  // dx / dl
  Vec<A> derivative(Vec<A> unit) const {
    if constexpr (kSoftcapped) {
      return (A(1) - unit) * (A(1) + unit) * scale_;
    } else {
      return broadcast(scale_);
    }
  }

 private:
  A scale_;
  A sign_;
  A scale_in_cap_;
};

}  // namespace
}  // namespace fused_losses::cpu
