// What softmax is taken of: logit_scale * l, or softcap * tanh(logit_scale * l / softcap).
#pragma once

#include "element.h"

namespace fused_losses::cuda {
namespace {

// x is a factor times a unit: the logit or its tangent. Differences are taken of units, so that the largest x has z = 0
// whatever the compiler contracts. Without a softcap the factor is logit_scale with its sign, and the unit the logit as
// it is: unlike in Note [Units] in cross_entropy_terms.cuh. Made by the host, which divides once.
template <class A, bool kSoftcapped>
struct LogitTransform {
  A factor;
  A sign;  // of logit_scale
  A scale;
  A scale_in_cap;

  LogitTransform(double logit_scale, double softcap)
      : factor(static_cast<A>(kSoftcapped ? softcap : logit_scale)),
        sign(logit_scale < 0 ? A(-1) : A(1)),
        scale(static_cast<A>(logit_scale)),
        scale_in_cap(kSoftcapped ? static_cast<A>(logit_scale / softcap) : A(0)) {}

  // Logits in the order of x, and back.
  __device__ __forceinline__ A key(A logit) const { return logit * sign; }
  __device__ __forceinline__ A logit_of(A key) const { return key * sign; }

  __device__ __forceinline__ A unit(A logit) const {
    if constexpr (kSoftcapped) return tanh_of(logit * scale_in_cap);
    return logit;
  }

  // The unit of the largest x; where all are -inf any number, so that their exponentials become 0, not NaN.
  __device__ __forceinline__ A shift_of(A max_key) const {
    return !kSoftcapped && max_key == -kInfinity<A> ? A(0) : unit(logit_of(max_key));
  }

  // dx / dl
  __device__ __forceinline__ A derivative(A unit) const {
    if constexpr (kSoftcapped) return (A(1) - unit) * (A(1) + unit) * scale;
    return scale;
  }
};

}  // namespace
}  // namespace fused_losses::cuda
