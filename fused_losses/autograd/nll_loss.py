"""Negative log-likelihood as a ``torch.autograd.Function``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import nll_loss as torch_nll_loss

from .. import _ops
from .backward import composite_gradients, needs_composite
from .eager import eager_apply, needs_gradient, promotes


class NLLLossFunction(torch.autograd.Function):
    r"""Negative log-likelihood of class indices, :math:`\ell_n = -w_{t_n} x_{n t_n}`.

    Args of :meth:`apply`, by position:
        input: log-probabilities, :math:`(C)`, :math:`(N, C)` or :math:`(N, C, d_1, \dots, d_K)`; float32, float64,
            bfloat16 or float16.
        target: class indices (int64, int32, uint8) without the class axis.
        weight: :math:`(C)` of the input's type, or ``None``.
        reduction: 0 (none), 1 (mean) or 2 (sum).
        ignore_index: the class index that does not count.
        promote: return the loss of a 16-bit input in float32.

    Returns:
        The loss: a scalar, or :math:`(N, d_1, \dots, d_K)` without reduction.

    Raises:
        IndexError: a class index is neither in :math:`[0, C)` nor ``ignore_index``.
        ValueError: there is no kernel for these shapes or types.

    Source: the documentation of :class:`torch.nn.NLLLoss`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        reduction: int = 1,
        ignore_index: int = -100,
        promote: bool = False,
    ) -> Tensor:
        ctx.options = (reduction, ignore_index, promote)
        ctx.save_for_backward(input, target, weight)
        return _ops.nll_loss_forward(input, target, weight, *ctx.options)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, target, weight = ctx.saved_tensors
        reduction, ignore_index, promote = ctx.options
        if needs_composite(ctx, grad_output):
            loss_function = partial(_composite, reduction, ignore_index=ignore_index, promote=promote)
            gradients = composite_gradients(ctx, loss_function, (input, target, weight), grad_output)
            return (*gradients, None, None, None)
        gradient = _ops.nll_loss_backward(grad_output, target, weight, input.shape, input.dtype, *ctx.options)
        return gradient, None, None, None, None, None


def _composite(
    reduction: int, input: Tensor, target: Tensor, weight: Tensor | None, *, ignore_index: int, promote: bool
) -> Tensor:
    """Torch's own negative log-likelihood with this call's options."""
    if target.dtype == torch.int32:
        target = target.long()
    if promote:
        input = input.float()
        weight = None if weight is None else weight.float()
    return torch_nll_loss(
        input, target, weight, ignore_index=ignore_index, reduction=("none", "mean", "sum")[reduction]
    )


_apply = eager_apply(NLLLossFunction)


def fused_nll_loss(input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int) -> Tensor:
    """The loss by the cheapest way: the operator alone where no gradient is needed, else the Function."""
    options = (reduction, ignore_index, promotes(input))
    if needs_gradient(input):
        return _apply(input, target, weight, *options)
    return _ops.nll_loss_forward(input, target, weight, *options)
