// Value and derivative of the elementwise losses on one register. They share what they can; the compiler drops the one
// that is not asked for.
#pragma once

#include "vec_math.h"

namespace fused_losses::cpu {
namespace {

template <class A>
struct ValueAndDerivative {
  Vec<A> value;
  Vec<A> derivative;
};

// x in [0, 1], y the target: -(y log x + (1 - y) log(1 - x)), the logarithms not below -100.
// Source: the documentation of torch.nn.BCELoss.
struct ProbabilityFormula {
  static constexpr bool kChecksRange = true;

  template <class A>
  static ValueAndDerivative<A> at(Vec<A> x, Vec<A> y, Vec<A>) {
    const Vec<A> lowest = broadcast<A>(-100);
    const Vec<A> value = (y - A(1)) * max_of(lowest, log_of_complement<A>(x)) - y * max_of(lowest, log<A>(x));
    return {value, (x - y) / max_of(broadcast<A>(static_cast<A>(1e-12)), (A(1) - x) * x)};
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

  template <class A>
  static ValueAndDerivative<A> at(Vec<A> x, Vec<A> y, Vec<A> pos_weight) {
    const Vec<A> magnitude = max_of(-x, x);
    const Vec<A> exponential = exp<A>(-magnitude);
    const Vec<A> negative = A(1) - y;
    const Vec<A> positive = pos_weight * y;
    const IntVec<A> is_positive = x >= Vec<A>{};
    const Vec<A> slope = select(is_positive, negative, positive);
    const Vec<A> linear = select(slope == Vec<A>{}, Vec<A>{}, magnitude * slope);
    const Vec<A> value = (negative + positive) * log1p(exponential) + linear;
    const Vec<A> large = A(1) / (exponential + A(1));  // sigmoid(|x|)
    const Vec<A> small = exponential * large;          // sigmoid(-|x|)
    return {value, negative * select(is_positive, large, small) - positive * select(is_positive, small, large)};
  }
};

}  // namespace
}  // namespace fused_losses::cpu
