"""Binary cross-entropy of probabilities as a ``torch.autograd.Function``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy as torch_binary_cross_entropy

from .. import _ops
from .backward import composite_gradients, needs_composite, take_gradient
from .eager import eager_apply, needs_gradient, promotes, saves_through_hooks


class BinaryCrossEntropyFunction(torch.autograd.Function):
    r"""Binary cross-entropy of probabilities, with the logarithms clamped at -100.

    .. math::
        \ell = -w \left( y \max(\log x, -100) + (1 - y) \max(\log(1 - x), -100) \right), \qquad
        \frac{\partial \ell}{\partial x} = w \frac{x - y}{\max(x (1 - x), 10^{-12})}

    Args of :meth:`apply`, by position:
        input: probabilities of any shape; float32, float64, bfloat16 or float16.
        target: of the input's shape and type, in :math:`[0, 1]`.
        weight: broadcast to the input's shape, of the input's type, or ``None``.
        reduction: 0 (none), 1 (mean) or 2 (sum).

    Returns:
        The loss: a scalar, or of the input's shape without reduction.

    Raises:
        RuntimeError: a value of input or target lies outside :math:`[0, 1]`.
        ValueError: there is no kernel for these shapes or types.

    Source: the documentation of :class:`torch.nn.BCELoss`.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = 1) -> Tensor:
        ctx.reduction = reduction
        ctx.gradient = None
        ctx.save_for_backward(input, target, weight)
        if reduction == 0 or saves_through_hooks():
            return _ops.binary_cross_entropy_forward(input, target, weight, reduction)
        loss, ctx.gradient = _ops.binary_cross_entropy_with_gradient(input, target, weight, reduction)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if needs_composite(ctx, grad_output):
            loss_function = partial(_composite, ctx.reduction)
            return (*composite_gradients(ctx, loss_function, ctx.saved_tensors, grad_output), None)
        gradient = take_gradient(ctx, grad_output, partial(_rescale, ctx.reduction))
        if gradient is None:
            gradient = _ops.binary_cross_entropy_backward(grad_output, *ctx.saved_tensors, ctx.reduction)
        return gradient, None, None, None


def _rescale(reduction: int, grad_output: Tensor, gradient: Tensor, *saved: Tensor | None) -> None:
    _ops.binary_cross_entropy_rescale_gradient(grad_output, gradient, *saved, reduction)


def _composite(reduction: int, input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Torch's own binary cross-entropy with this call's options."""
    if target.dtype != input.dtype:
        input = input.to(target.dtype)
    return torch_binary_cross_entropy(input, target, weight, reduction=("none", "mean", "sum")[reduction])


_apply = eager_apply(BinaryCrossEntropyFunction)


def fused_binary_cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None, reduction: int) -> Tensor:
    """The loss by the cheapest way: the operator alone where no gradient is needed, else the Function."""
    if target.dtype != input.dtype and not promotes(input):
        raise ValueError("without autocast, input and target must have one type")
    if needs_gradient(input):
        return _apply(input, target, weight, reduction)
    return _ops.binary_cross_entropy_forward(input, target, weight, reduction)
