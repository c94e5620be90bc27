"""Softmax cross-entropy as a ``torch.autograd.Function``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy

from .. import _ops
from .backward import composite_gradients, needs_composite, take_gradient
from .eager import eager_apply, needs_gradient, promotes, saves_through_hooks
from .inplace import may_overwrite, overwrite


class CrossEntropyFunction(torch.autograd.Function):
    r"""Softmax cross-entropy with class indices or probabilities as targets.

    .. math::
        \ell_n = -\sum_c q_{nc} \log \operatorname{softmax}(x_n)_c, \qquad
        \frac{\partial \ell_n}{\partial x_{nc}} = \operatorname{softmax}(x_n)_c \sum_k q_{nk} - q_{nc}

    where :math:`q` is the smoothed, weighted target: see ``csrc/core/cross_entropy.h``.

    Args of :meth:`apply`, by position:
        logits: :math:`(C)`, :math:`(N, C)` or :math:`(N, C, d_1, \dots, d_K)`; float32, float64, bfloat16 or float16.
        target: class indices (int64, int32, uint8) without the class axis, or probabilities of the logits' shape.
        class_weight: :math:`(C)` of the logits' type, or ``None``.
        reduction: 0 (none), 1 (mean) or 2 (sum).
        ignore_index: the class index that does not count.
        label_smoothing: in :math:`[0, 1]`.
        promote: return the loss of 16-bit logits in float32.
        inplace_gradient: let the backward write the gradient over the logits.

    Returns:
        The loss: a scalar, or :math:`(N, d_1, \dots, d_K)` without reduction.

    Raises:
        IndexError: a class index is neither in :math:`[0, C)` nor ``ignore_index``.
        RuntimeError: ``inplace_gradient`` with logits that are a leaf or a view of one.
        ValueError: there is no kernel for these shapes or types.

    Source: `Rethinking the Inception Architecture <https://arxiv.org/abs/1512.00567>`_ for label smoothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        class_weight: Tensor | None = None,
        reduction: int = 1,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        promote: bool = False,
        inplace_gradient: bool = False,
    ) -> Tensor:
        ctx.options = (reduction, ignore_index, label_smoothing, promote)
        ctx.overwrites = inplace_gradient and may_overwrite(logits, target, class_weight)
        if reduction == 0 or ctx.overwrites or saves_through_hooks():
            ctx.gradient = None
            loss, statistics = _ops.cross_entropy_with_statistics(logits, target, class_weight, *ctx.options)
            ctx.save_for_backward(logits, target, class_weight, statistics)
        else:
            loss, ctx.gradient = _ops.cross_entropy_with_gradient(logits, target, class_weight, *ctx.options)
            ctx.save_for_backward(logits, target, class_weight, None)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        reduction, ignore_index, label_smoothing, promote = ctx.options
        if needs_composite(ctx, grad_output):
            logits, target, class_weight, _ = ctx.saved_tensors
            loss_function = partial(
                _composite, reduction, ignore_index=ignore_index, label_smoothing=label_smoothing, promote=promote
            )
            gradients = composite_gradients(ctx, loss_function, (logits, target, class_weight), grad_output)
            return (*gradients, None, None, None, None, None)
        gradient = take_gradient(ctx, grad_output, partial(_rescale, ctx.options))
        if gradient is None:
            logits, target, class_weight, statistics = ctx.saved_tensors
            if statistics is None:
                _, statistics = _ops.cross_entropy_with_statistics(logits, target, class_weight, *ctx.options)
            arguments = (grad_output, logits, target, class_weight, statistics, *ctx.options)
            if ctx.overwrites:
                gradient = overwrite(logits, _ops.cross_entropy_backward_over_logits, *arguments)
            if gradient is None:
                gradient = _ops.cross_entropy_backward(*arguments)
        return gradient, None, None, None, None, None, None, None


def _rescale(
    options: tuple[Any, ...],
    grad_output: Tensor,
    gradient: Tensor,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    _statistics: None,
) -> None:
    _ops.cross_entropy_rescale_gradient(grad_output, gradient, logits, target, class_weight, *options)


def _composite(
    reduction: int,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    *,
    ignore_index: int,
    label_smoothing: float,
    promote: bool,
) -> Tensor:
    """Torch's own cross-entropy with this call's options."""
    if target.dtype == torch.int32:
        target = target.long()
    if promote:
        logits = logits.float()
        target = target.float() if target.is_floating_point() else target
        class_weight = None if class_weight is None else class_weight.float()
    return torch_cross_entropy(
        logits,
        target,
        class_weight,
        ignore_index=ignore_index,
        reduction=("none", "mean", "sum")[reduction],
        label_smoothing=label_smoothing,
    )


_apply = eager_apply(CrossEntropyFunction)


def fused_cross_entropy(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    inplace_gradient: bool,
) -> Tensor:
    """The loss by the cheapest way: the operator alone where no gradient is needed, else the Function."""
    options = (reduction, ignore_index, label_smoothing, promotes(logits))
    if needs_gradient(logits):
        return _apply(logits, target, class_weight, *options, inplace_gradient)
    return _ops.cross_entropy_forward(logits, target, class_weight, *options)
