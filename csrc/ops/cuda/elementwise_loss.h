// What the CUDA operators of the two elementwise losses share: everything but the formula.
#pragma once

#include <tuple>

#include "../elementwise_problem.h"
#include "device.h"

namespace fused_losses::cuda {

using ElementwiseKernel = int64_t(const BinaryCrossEntropyParams&, Stream);

// `kernel` picks the loss.
Tensor elementwise_loss(ElementwiseKernel* kernel, const ElementwiseOperands& operands, int64_t reduction);
std::tuple<Tensor, Tensor> elementwise_loss_with_gradient(ElementwiseKernel* kernel,
                                                          const ElementwiseOperands& operands, int64_t reduction);
Tensor elementwise_loss_backward(ElementwiseKernel* kernel, const Tensor& grad_output,
                                 const ElementwiseOperands& operands, int64_t reduction);
// Writes the gradient over the input; refused where that is not dense memory.
void elementwise_loss_backward_over_input(ElementwiseKernel* kernel, const Tensor& grad_output,
                                          const ElementwiseOperands& operands, int64_t reduction);
// Computes `gradient` anew for this grad_output, on the device and only where that is not 1.
void elementwise_loss_rescale_gradient(ElementwiseKernel* kernel, const Tensor& grad_output, const Tensor& gradient,
                                       const ElementwiseOperands& operands, int64_t reduction);

}  // namespace fused_losses::cuda
