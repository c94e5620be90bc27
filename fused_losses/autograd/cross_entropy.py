"""Softmax cross-entropy as a ``torch.autograd.Function``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from ..operators.class_axis import class_dim, mean_scale
from ..operators.composite import other_gradients
from ..operators.cross_entropy import composite
from ..operators.registration import MEAN, NONE, below_autograd, call, is_batched
from ..operators.versions import check_versions, remember_versions
from ..route_log import COMPILED, EAGER
from ..routing import may_be_differentiated
from .backward import (
    dense,
    is_plain,
    reduction_for_one,
    take_gradient,
    times_batch,
    unrounded_for_one,
)
from .eager import eager_apply, loss_without_gradient, prepared_grad_output, smoothed_target
from .inplace import may_overwrite, overwrite
from .scale_history import expectation_of


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
        terms: the fields of ``RowTerms``, or nothing.

    Returns:
        The loss: a scalar, or :math:`(N, d_1, \dots, d_K)` without reduction.

    Raises:
        IndexError: a class index is neither in :math:`[0, C)` nor ``ignore_index``.
        RuntimeError: there is no kernel for these shapes or types, or ``inplace_gradient`` is asked for with logits
            that are a leaf or a view of one.

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
        terms: tuple[float, ...] = (),
    ) -> Tensor:
        ctx.options = (reduction, ignore_index, label_smoothing, promote, *terms)
        ctx.overwrites = inplace_gradient and may_overwrite(logits, target, class_weight)
        ctx.expectation = expectation_of(logits, reduction, "cross_entropy")
        expected = None if ctx.overwrites else prepared_grad_output(reduction, ctx.expectation)
        ctx.expected = expected
        arguments = (logits, target, class_weight)
        if expected is not None:
            loss, ctx.gradient = _ops.cross_entropy_with_gradient(*arguments, expected, *ctx.options)
            ctx.save_for_backward(None, *arguments)
            return loss
        ctx.gradient = None
        with below_autograd():
            loss, statistics = _ops.cross_entropy_with_statistics(*arguments, *ctx.options)
        remember_versions(statistics, logits)
        # First, for a checkpoint that computes again by another way and compares shapes: what torch's own loss of
        # probabilities saves has the shapes of logits and target, and other values.
        ctx.save_for_backward(statistics, *arguments)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if not is_plain(ctx, grad_output):
            return (*_watched_gradients(ctx, dense(grad_output)), None, None, None, None, None, None)
        gradient = take_gradient(ctx, grad_output, partial(_rescale, ctx.options))
        if gradient is None:
            statistics, logits, target, class_weight = _saved_tensors(ctx)
            with below_autograd():
                if statistics is None:
                    _, statistics = _ops.cross_entropy_with_statistics(logits, target, class_weight, *ctx.options)
                arguments = (grad_output, logits, target, class_weight, statistics, *ctx.options)
                if ctx.overwrites:
                    gradient = overwrite(logits, _ops.cross_entropy_backward_over_logits, *arguments)
                if gradient is None:
                    gradient = _ops.cross_entropy_backward(*arguments)
        return gradient, None, None, None, None, None, None, None, None


def _saved_tensors(ctx: Any) -> tuple[Any, ...]:
    """Statistics, logits, target and class weight. See Note [Versions under hooks]."""
    saved: tuple[Any, ...] = ctx.saved_tensors
    if saved[0] is not None:
        check_versions(*saved[:2])
    return saved


def _watched_gradients(ctx: Any, grad_output: Tensor) -> list[Tensor | None]:
    """See Note [Watched backwards]."""
    ctx.expectation.observe_other_use()
    statistics, *arguments = _saved_tensors(ctx)
    if statistics is None:
        with torch.no_grad():
            _, statistics = call("cross_entropy_with_statistics", *arguments, *ctx.options)
    if is_batched(grad_output):
        gradient = _batched_gradient(grad_output, arguments, statistics, ctx.options)
    else:
        gradient = call("cross_entropy_backward", grad_output, *arguments, statistics, *ctx.options)
    return [gradient, *other_gradients(ctx, partial(composite, ctx.options), arguments, grad_output)]


def _batched_gradient(
    grad_output: Tensor, arguments: list[Any], statistics: Tensor, options: tuple[Any, ...]
) -> Tensor:
    logits, target, class_weight = arguments
    reduction, ignore_index, label_smoothing, *_ = options
    ones = torch.ones(grad_output.shape, dtype=statistics.dtype, device=logits.device)
    options_for_one = (reduction_for_one(reduction), *options[1:])
    of_one = call("cross_entropy_backward", ones, *unrounded_for_one(arguments), statistics, *options_for_one)
    scale = mean_scale(target, class_weight, ignore_index, label_smoothing, logits) if reduction == MEAN else None
    is_by_position = reduction == NONE or isinstance(scale, Tensor)
    axis = class_dim(logits.shape) if is_by_position else None
    return times_batch(of_one, grad_output, scale, axis, logits.dtype)


def _rescale(
    options: tuple[Any, ...],
    grad_output: Tensor,
    gradient: Tensor,
    prepared_for: float,
    _statistics: None,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
) -> None:
    _ops.cross_entropy_rescale_gradient(grad_output, gradient, prepared_for, logits, target, class_weight, *options)


_apply = eager_apply(CrossEntropyFunction)


def fused_cross_entropy(
    route: str,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    promote: bool,
    inplace_gradient: bool,
    terms: tuple[float, ...] = (),
) -> Tensor:
    """The loss by the cheapest way: see ``fused_losses/routing.py``."""
    options = (reduction, ignore_index, label_smoothing, promote, *terms)
    if not may_be_differentiated(logits, route):
        return loss_without_gradient("cross_entropy", route, logits, target, class_weight, *options)
    if route != COMPILED:
        target = smoothed_target(target, label_smoothing)
    if route != EAGER:
        name = "cross_entropy_prepared" if route == COMPILED else "cross_entropy_with_statistics"
        loss: Tensor = call(name, logits, target, class_weight, *options)[0]
        return loss
    tensors = (logits, target, class_weight)
    return _apply(*tensors, reduction, ignore_index, label_smoothing, promote, inplace_gradient, terms)
