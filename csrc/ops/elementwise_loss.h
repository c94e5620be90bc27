// What the CPU operators of the two elementwise losses share: everything but the formula.
#pragma once

#include <tuple>

#include "../cpu/kernels.h"
#include "elementwise_problem.h"

namespace fused_losses {

// `kernel` picks the loss; `checks_range` asks for torch's RuntimeError when a value lies outside [0, 1].
Tensor elementwise_loss(cpu::BinaryCrossEntropyKernel* kernel, const ElementwiseOperands& operands, int64_t reduction,
                        bool checks_range);
std::tuple<Tensor, Tensor> elementwise_loss_with_gradient(cpu::BinaryCrossEntropyKernel* kernel,
                                                          const ElementwiseOperands& operands, int64_t reduction,
                                                          bool checks_range);
Tensor elementwise_loss_backward(cpu::BinaryCrossEntropyKernel* kernel, const Tensor& grad_output,
                                 const ElementwiseOperands& operands, int64_t reduction);
// Writes the gradient over the input; refused where that is not dense memory.
void elementwise_loss_backward_over_input(cpu::BinaryCrossEntropyKernel* kernel, const Tensor& grad_output,
                                          const ElementwiseOperands& operands, int64_t reduction);

}  // namespace fused_losses
