// The formulas of Note [Target mass] and Note [Confident rows] in cross_entropy.h, shared by every backend. V is a
// scalar or a register.
#pragma once

#include "host_device.h"

namespace fused_losses {
namespace {

// y (log S - (x_t - m)), the loss of the point mass y.
template <class V>
FUSED_LOSSES_HOST_DEVICE inline V point_loss(V point_mass, V log_sum, V shifted_logit) {
  return point_mass * (log_sum - shifted_logit);
}

// Q log S - sum of q (x - m), the loss of the dense mass. An infinite mass has an infinite loss, also where log S is
// rounded to 0, and where the sum is NaN, as it is at x = m; but a NaN among the logits, which is in S, stays.
template <class V>
FUSED_LOSSES_HOST_DEVICE inline V dense_loss(V mass, V log_sum, V mass_times_x) {
  return mass == V{} + __builtin_inff() ? mass + log_sum : mass * log_sum - mass_times_x;
}

// (Q + y) p - q - y, the derivative at the target class, in one piece before it is rounded. `point_mass_of_others` is
// y (1 - p): see Note [Confident rows].
template <class A>
FUSED_LOSSES_HOST_DEVICE inline A derivative_at_target(A p, A mass, A q, A point_mass_of_others) {
  return mass * p - q - point_mass_of_others;
}

}  // namespace
}  // namespace fused_losses
