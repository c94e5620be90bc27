"""Binary cross-entropy of probabilities as a ``torch.autograd.Function``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from ..operators.binary_cross_entropy import composite
from ..operators.registration import below_autograd
from ..route_log import EAGER
from ..routing import may_be_differentiated
from .backward import dense, is_plain, take_gradient
from .eager import eager_apply, loss_without_gradient, prepared_grad_output
from .elementwise import watched_gradients, watched_loss
from .scale_history import expectation_of


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
        RuntimeError: there is no kernel for these shapes or types, or a value of input or target lies outside
            :math:`[0, 1]`.

    Source: the documentation of :class:`torch.nn.BCELoss`.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = 1) -> Tensor:
        ctx.reduction = reduction
        arguments = (input, target, weight, reduction)
        ctx.save_for_backward(input, target, weight)
        ctx.expectation = expectation_of(input, reduction, "binary_cross_entropy")
        ctx.expected = prepared_grad_output(reduction, ctx.expectation)
        if ctx.expected is None:
            ctx.gradient = None
            return _ops.binary_cross_entropy_forward(*arguments)
        loss, ctx.gradient = _ops.binary_cross_entropy_with_gradient(*arguments, ctx.expected)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if not is_plain(ctx, grad_output):
            gradients = watched_gradients("binary_cross_entropy", composite, ctx, dense(grad_output))
            return (*gradients, None)
        gradient = take_gradient(ctx, grad_output, partial(_rescale, ctx.reduction))
        if gradient is None:
            arguments = (grad_output, *ctx.saved_tensors, ctx.reduction)
            with below_autograd():
                gradient = _ops.binary_cross_entropy_backward(*arguments)
        return gradient, None, None, None


def _rescale(reduction: int, grad_output: Tensor, gradient: Tensor, prepared_for: float, *saved: Tensor | None) -> None:
    _ops.binary_cross_entropy_rescale_gradient(grad_output, gradient, prepared_for, *saved, reduction)


_apply = eager_apply(BinaryCrossEntropyFunction)


def fused_binary_cross_entropy(
    route: str, input: Tensor, target: Tensor, weight: Tensor | None, reduction: int
) -> Tensor:
    """The loss by the cheapest way: see ``fused_losses/routing.py``."""
    arguments = (input, target, weight, reduction)
    if not may_be_differentiated(input, route):
        return loss_without_gradient("binary_cross_entropy", route, *arguments)
    if route != EAGER:
        return watched_loss("binary_cross_entropy", route, *arguments)
    return _apply(*arguments)
