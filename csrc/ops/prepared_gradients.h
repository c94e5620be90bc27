// Gradients that a forward on the CPU has computed, where nothing but tensors goes from it to its backward.
//
// Note [Prepared gradients]
// Loss and gradient in one go cost hardly more than the loss: see Note [One read of a row]. In eager mode the autograd
// node keeps that gradient. A compiled graph has no node: forward and backward are operators of two graphs, and a
// gradient that went from one to the other as a tensor would have to be multiplied by grad_output on the way, which is
// another sweep over it. So the forward gives the backward a ticket, a small tensor (cross-entropy's statistics are
// one), and the gradient waits here under the ticket's address until the backward of the same call, for the grad_output
// that was expected, takes it, or the ticket's memory is freed. In any other case the backward computes: bits do not
// depend on what waits here, and no operator is wrong that is called with a copy of a ticket, or twice.
//
// What is expected is what the last backward of a loss of this kind asked for; where that changed twice in a row
// nothing is prepared. See Note [Expected grad_output] in fused_losses/autograd/scale_history.py, which does the same
// in eager mode.
#pragma once

#include <initializer_list>
#include <optional>
#include <vector>

#include "tensors.h"

namespace fused_losses {

// A call's operands and options, as numbers: two calls with equal keys have equal gradients for equal grad_outputs, as
// long as the operands are not modified.
struct CallKey {
  std::vector<int64_t> kind;  // calls that are likely to be scaled alike
  std::vector<int64_t> call;

  // Null operands are absent. `options` begin with the number of the loss and the reduction.
  CallKey(std::initializer_list<const Tensor*> operands, std::initializer_list<int64_t> options);
};

class PreparedGradients {
 public:
  // Whether the memory is a ticket's: what most backwards ask, before they make a key.
  static bool is_ticket(const Tensor& tensor);

  // A new ticket of uninitialised memory, or nothing where torch is too old to be told when that is freed.
  static std::optional<Tensor> new_ticket(const std::vector<int64_t>& sizes, ScalarType type, const CallKey& key);

  // The grad_output to prepare a gradient for, if any.
  static std::optional<double> expected_grad_output(const CallKey& key);

  static void keep(const Tensor& ticket, double grad_output, const Tensor& gradient);

  // The gradient of the call with this key, if it was prepared for this grad_output. It waits no longer in any case.
  static std::optional<Tensor> take(const Tensor& ticket, const CallKey& key, const Tensor& grad_output);

  // How many wait.
  static int64_t count();
};

inline const Tensor* optional_operand(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? &*tensor : nullptr;
}

}  // namespace fused_losses
