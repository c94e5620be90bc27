"""Binary cross-entropy of logits as a ``torch.autograd.Function``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from ..operators.binary_cross_entropy_with_logits import composite
from ..operators.registration import below_autograd
from ..route_log import EAGER
from ..routing import may_be_differentiated
from .backward import dense, is_plain, take_gradient
from .eager import eager_apply, loss_without_gradient, prepared_grad_output
from .elementwise import watched_gradients, watched_loss
from .inplace import may_overwrite, overwrite
from .scale_history import expectation_of


class BinaryCrossEntropyWithLogitsFunction(torch.autograd.Function):
    r"""Binary cross-entropy of :math:`\sigma(x)`, computed from the logits :math:`x`.

    .. math::
        \ell = -w \left( p\, y \log \sigma(x) + (1 - y) \log \sigma(-x) \right), \qquad
        \frac{\partial \ell}{\partial x} = w \left( (1 - y)\, \sigma(x) - p\, y\, \sigma(-x) \right)

    Args of :meth:`apply`, by position:
        logits: any shape; float32, float64, bfloat16 or float16.
        target: of the logits' shape, and of their type or float32; gives the loss its type.
        weight: :math:`w`, broadcast to the logits' shape, of the logits' or the target's type, or ``None``.
        pos_weight: :math:`p`, likewise.
        reduction: 0 (none), 1 (mean) or 2 (sum).
        inplace_gradient: let the backward write the gradient over the logits.

    Returns:
        The loss: a scalar, or of the logits' shape without reduction.

    Raises:
        RuntimeError: there is no kernel for these shapes or types, or ``inplace_gradient`` is asked for with logits
            that are a leaf or a view of one.

    Source: the documentation of :class:`torch.nn.BCEWithLogitsLoss`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        reduction: int = 1,
        inplace_gradient: bool = False,
    ) -> Tensor:
        ctx.reduction = reduction
        arguments = (logits, target, weight, pos_weight, reduction)
        ctx.save_for_backward(logits, target, weight, pos_weight)
        ctx.overwrites = inplace_gradient and may_overwrite(logits, target, weight, pos_weight)
        ctx.expectation = expectation_of(logits, reduction, "binary_cross_entropy_with_logits")
        ctx.expected = None if ctx.overwrites else prepared_grad_output(reduction, ctx.expectation)
        if ctx.expected is None:
            ctx.gradient = None
            return _ops.binary_cross_entropy_with_logits_forward(*arguments)
        loss, ctx.gradient = _ops.binary_cross_entropy_with_logits_with_gradient(*arguments, ctx.expected)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if not is_plain(ctx, grad_output):
            gradients = watched_gradients("binary_cross_entropy_with_logits", composite, ctx, dense(grad_output))
            return (*gradients, None, None)
        gradient = take_gradient(ctx, grad_output, partial(_rescale, ctx.reduction))
        if gradient is None:
            saved = ctx.saved_tensors
            arguments = (grad_output, *saved, ctx.reduction)
            with below_autograd():
                if ctx.overwrites:
                    write = _ops.binary_cross_entropy_with_logits_backward_over_logits
                    gradient = overwrite(saved[0], write, *arguments)
                if gradient is None:
                    gradient = _ops.binary_cross_entropy_with_logits_backward(*arguments)
        return gradient, None, None, None, None, None


def _rescale(reduction: int, grad_output: Tensor, gradient: Tensor, prepared_for: float, *saved: Tensor | None) -> None:
    _ops.binary_cross_entropy_with_logits_rescale_gradient(grad_output, gradient, prepared_for, *saved, reduction)


_apply = eager_apply(BinaryCrossEntropyWithLogitsFunction)


def fused_binary_cross_entropy_with_logits(
    route: str,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: int,
    inplace_gradient: bool,
) -> Tensor:
    """The loss by the cheapest way: see ``fused_losses/routing.py``."""
    arguments = (logits, target, weight, pos_weight, reduction)
    if not may_be_differentiated(logits, route):
        loss = loss_without_gradient("binary_cross_entropy_with_logits", route, *arguments)
    elif route != EAGER:
        return watched_loss("binary_cross_entropy_with_logits", route, *arguments)
    else:
        loss = _apply(*arguments, inplace_gradient)
    return loss if reduction != 0 else _in_order_of(target, loss)


def _in_order_of(target: Tensor, losses: Tensor) -> Tensor:
    """The unreduced losses with their axes in the order of the target's, as torch's; ours have the logits'."""
    if losses.stride() == target.stride():
        return losses
    ordered = torch.empty_like(target, dtype=losses.dtype, requires_grad=False)
    strides = zip(losses.shape, losses.stride(), ordered.stride(), strict=True)
    if all(size == 1 or own == others for size, own, others in strides):
        return losses
    return ordered.copy_(losses)
