// Value and derivative of the elementwise losses, shared by every backend. They share what they can; the compiler drops
// the one that is not asked for.
//
// Math is a backend's arithmetic: V, a register or a scalar, with the operators of a number, and static functions
// constant, select, all_zero_or_one, max_of, exp, log1p, log, log_of_complement and log_of_either. Of these three
// ProbabilityFormula asks no more than that they are at most -100 at log 0.
#pragma once

#include "elementwise.h"
#include "host_device.h"

namespace fused_losses {
namespace {

template <class V>
struct ValueAndDerivative {
  V value;
  V derivative;
};

// x in [0, 1], y the target: -(y log x + (1 - y) log(1 - x)), the logarithms not below -100. Targets of 0 and 1 leave
// one of them; what they give is the same to the bit, also the sign of a zero, whatever targets stand beside them.
// Source: the documentation of torch.nn.BCELoss.
struct ProbabilityFormula {
  static constexpr bool kChecksRange = true;
  static constexpr bool kTakesWeights = true;

  template <class Math, class V = typename Math::V>
  FUSED_LOSSES_HOST_DEVICE static ValueAndDerivative<V> at(V x, V y, V) {
    const V zero = Math::constant(0);
    const V one = Math::constant(1);
    const V lowest = Math::constant(-100);
    const auto is_one = y == one;
    V value = zero;
    if (Math::all_zero_or_one(y)) {
      value -= Math::max_of(lowest, Math::log_of_either(is_one, x));
    } else {
      value += (y - one) * Math::max_of(lowest, Math::log_of_complement(x)) - y * Math::max_of(lowest, Math::log(x));
    }
    return {value, (x - y) / Math::max_of(Math::constant(1e-12f), (one - x) * x)};
  }
};

// Note [Logits at infinity]
// With l = 1 - y + pos_weight * y the loss is (1 - y) x + l softplus(-x), and softplus(-x) = log1p(exp(-|x|)) + max(-x,
// 0). Collecting the terms in |x| by the sign of x leaves
//   loss = l * log1p(exp(-|x|)) + |x| * (x >= 0 ? 1 - y : pos_weight * y),
// a sum of terms of one sign for targets in [0, 1]: nothing cancels. A zero coefficient makes its term 0 for an
// infinite x too, so that a certain and right prediction costs nothing and a certain and wrong one costs infinity. The
// derivative is (1 - y) sigmoid(x) - pos_weight * y * sigmoid(-x), with the same exponential. Source: the documentation
// of torch.nn.BCEWithLogitsLoss.
struct LogitFormula {
  static constexpr bool kChecksRange = false;
  static constexpr bool kTakesWeights = true;

  template <class Math, class V = typename Math::V>
  FUSED_LOSSES_HOST_DEVICE static ValueAndDerivative<V> at(V x, V y, V pos_weight) {
    const V zero = Math::constant(0);
    const V one = Math::constant(1);
    const V magnitude = Math::max_of(-x, x);
    const V exponential = Math::exp(-magnitude);
    const V negative = one - y;
    const V positive = pos_weight * y;
    const auto is_positive = x >= zero;
    const V slope = Math::select(is_positive, negative, positive);
    const V linear = Math::select(slope == zero, zero, magnitude * slope);
    const V value = (negative + positive) * Math::log1p(exponential) + linear;
    const V large = one / (exponential + one);  // sigmoid(|x|)
    const V small = exponential * large;        // sigmoid(-|x|)
    return {value,
            negative * Math::select(is_positive, large, small) - positive * Math::select(is_positive, small, large)};
  }
};

// Note [Focal loss]
// With the cross-entropy l of LogitFormula, p = sigmoid(x) and q = p (1 - y) + (1 - p) y, what is left of certainty,
//   loss = a q^gamma l,  a = alpha y + (1 - alpha) (1 - y), or 1 without an alpha,
//   d/dx = a q^gamma ((1 - y) p - y (1 - p) + gamma l (1 - 2 y) p (1 - p) / q),
// where for targets of 0 and 1 all terms have one sign, and the fraction is 1 - p or p. It is 0 where p or 1 - p is.
// Source: Lin et al., Focal Loss for Dense Object Detection (arXiv:1708.02002), section 3; its derivative.
struct FocalFormula {
  static constexpr bool kChecksRange = false;
  static constexpr bool kTakesWeights = false;

  double alpha;
  double gamma;

  template <class Math, class V = typename Math::V>
  FUSED_LOSSES_HOST_DEVICE ValueAndDerivative<V> at(V x, V y, V) const {
    const V zero = Math::constant(0);
    const V one = Math::constant(1);
    const V exponential = Math::exp(-Math::max_of(-x, x));
    const V large = one / (exponential + one);  // sigmoid(|x|)
    const V small = exponential * large;        // sigmoid(-|x|)
    const auto is_positive = x >= zero;
    const V p = Math::select(is_positive, large, small);
    const V complement = Math::select(is_positive, small, large);
    const V q = p * (one - y) + complement * y;
    const V power = gamma == 0 ? one : Math::exp(Math::log(q) * Math::constant(gamma));
    const ValueAndDerivative<V> plain = LogitFormula::at<Math>(x, y, one);
    const V fraction = Math::select(small == zero, zero, small * large / q);
    const V steepness = Math::select(fraction == zero, zero, Math::constant(gamma) * plain.value * fraction);
    const V a = alpha < 0 ? one : y * Math::constant(alpha) + (one - y) * Math::constant(1 - alpha);
    const V factor = a * power;
    return {factor * plain.value, factor * (plain.derivative + steepness * (one - y - y))};
  }
};

// A formula with what it takes of the call.
template <class Formula>
FUSED_LOSSES_HOST_DEVICE inline Formula formula_of(const ElementwiseParams& params) {
  if constexpr (kSameType<Formula, FocalFormula>) {
    return {params.focal_alpha, params.focal_gamma};
  } else {
    return {};
  }
}

}  // namespace
}  // namespace fused_losses
