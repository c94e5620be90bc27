"""Negative log-likelihood as a ``torch.autograd.Function``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from ..operators.composite import needed_gradients, other_gradients, pulled_back
from ..operators.nll_loss import composite, constant_of
from ..operators.registration import below_autograd, call, is_batched
from ..route_log import EAGER
from ..routing import may_be_differentiated
from .after_log_softmax import join_with_log_softmax
from .backward import dense, is_plain
from .eager import eager_apply, loss_without_gradient


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
        RuntimeError: there is no kernel for these shapes or types.

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
        if not is_plain(ctx, grad_output):
            return (*_watched_gradients(ctx, dense(grad_output)), None, None, None)
        input, target, weight = ctx.saved_tensors
        with below_autograd():
            gradient = _ops.nll_loss_backward(grad_output, target, weight, input.shape, input.dtype, *ctx.options)
        return gradient, None, None, None, None, None


def _watched_gradients(ctx: Any, grad_output: Tensor) -> list[Tensor | None]:
    """See Note [Watched backwards]."""
    input, target, weight = tensors = ctx.saved_tensors
    formula = partial(composite, ctx.options)
    if is_batched(grad_output):  # torch's own writes what is not 0 of each
        return pulled_back(formula, tensors, needed_gradients(ctx, tensors), grad_output)
    gradient = call("nll_loss_backward", grad_output, target, weight, input.shape, input.dtype, *ctx.options)
    if torch.is_grad_enabled():
        gradient = constant_of(input, gradient)
    return [gradient, *other_gradients(ctx, formula, tensors, grad_output)]


_apply = eager_apply(NLLLossFunction)


def fused_nll_loss(
    route: str, input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int, promote: bool
) -> Tensor:
    """The loss by the cheapest way: see ``fused_losses/routing.py``."""
    arguments = (input, target, weight, reduction, ignore_index, promote)
    if torch.compiler.is_dynamo_compiling():
        join_with_log_softmax()
    if not may_be_differentiated(input, route):
        return loss_without_gradient("nll_loss", route, *arguments)
    if route != EAGER:
        loss: Tensor = call("nll_loss", *arguments)
        return loss
    return _apply(*arguments)
