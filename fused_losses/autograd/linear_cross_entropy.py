"""Cross-entropy of a linear layer as a ``torch.autograd.Function``, a chunk of rows at a time.

Note [Gradients of a linear loss]
A mean or a sum computes the gradients of input and weight in its forward, while a chunk's logits are there: three
products, as many as the layer alone needs. They stay on the context in the type of computation, for ``grad_output`` 1,
until the backward multiplies them and rounds once: its bits depend on nothing that was before. An unreduced loss, a
loss under saved-tensor hooks (a checkpoint would compute the gradients twice) and a ``grad_output`` that is not finite
(0 times infinity must stay in the rows that count) compute them in the backward, one product more. An unreduced loss
keeps its logits where they are one chunk of at most ``CHUNK_BYTES``: that product is a fifth of the time or more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..operators.composite import needed_gradients, pulled_back
from ..operators.linear_cross_entropy import LinearLossOptions, autocast_is_off, composite
from ..operators.registration import NONE, is_batched
from ..operators.versions import check_versions, remember_versions, saves_through_hooks
from ..routing import is_compiling, is_watched, records_graph
from .backward import dense, keeps_graph
from .eager import eager_apply, smoothed_target
from .linear_problem import LinearProblem

__all__ = ["LinearCrossEntropyFunction", "computed_gradients", "fused_linear_cross_entropy"]


class LinearCrossEntropyFunction(torch.autograd.Function):
    r"""Cross-entropy of :math:`x W^\top + b`, whose logits exist a chunk of rows at a time.

    .. math::
        \frac{\partial \ell}{\partial x} = g W, \qquad
        \frac{\partial \ell}{\partial W} = g^\top x, \qquad
        \frac{\partial \ell}{\partial b} = \sum_n g_n

    with the gradient :math:`g` of the logits: see :class:`fused_losses.autograd.CrossEntropyFunction`.

    Args of :meth:`apply`, by position:
        input: :math:`(N, F)`; float32, float64, bfloat16 or float16.
        weight: :math:`(C D, F)`, for :math:`D` heads of :math:`C` classes.
        bias: :math:`(C D)`, or ``None``.
        target: class indices :math:`(N)`, or :math:`(N, D)`; or probabilities :math:`(N, C)`, or :math:`(N, C, D)`.
        class_weight: :math:`(C)`, or ``None``.
        token_weight: a factor for each loss, in the losses' shape, or ``None``.
        options: :class:`fused_losses.operators.linear_cross_entropy.LinearLossOptions`.
        chunk_rows: rows of a chunk, or ``None``.

    Returns:
        The loss: a scalar, or in the shape of the positions without reduction.

    Raises:
        IndexError: a class index is neither in :math:`[0, C)` nor ``ignore_index``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        class_weight: Tensor | None,
        token_weight: Tensor | None,
        options: LinearLossOptions,
        chunk_rows: int | None = None,
    ) -> Tensor:
        tensors = (input, weight, bias, target, class_weight, token_weight)
        wants_token_weight = ctx.needs_input_grad[5]
        ctx.options, ctx.chunk_rows, ctx.dtype = options, chunk_rows, input.dtype
        ctx.gradients = ctx.factor = ctx.logits = None
        with autocast_is_off(input.device.type):
            problem = LinearProblem(options, chunk_rows, *tensors, keeps_weightless=wants_token_weight)
            if options.reduction != NONE and not wants_token_weight and not saves_through_hooks():
                loss, ctx.gradients, ctx.factor = problem.loss_and_gradients(ctx.needs_input_grad[:3])
                ctx.save_for_backward(*tensors, None, None)
            else:
                losses, statistics = problem.losses_and_statistics()
                loss = problem.reduced(losses)
                ctx.logits = None if saves_through_hooks() else problem.chunks.small_logits()
                remember_versions(statistics, input, weight, bias)
                ctx.save_for_backward(*tensors, losses if wants_token_weight else None, statistics)
        return loss.to(options.loss_dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_output = dense(grad_output)
        is_plain = _is_plain(grad_output)
        with autocast_is_off(grad_output.device.type):
            # Before what was saved is asked for, which may have been modified since: the next step of an optimizer.
            if is_plain and ctx.gradients is not None:
                scale = _scale_of_gradients(ctx.factor, grad_output)
                if scale is not None:
                    return (*_take_gradients(ctx, scale), None, None, None, None, None)
            *tensors, losses, statistics = ctx.saved_tensors  # once: a checkpoint unpacks them no second time
            if statistics is not None:
                check_versions(statistics, *tensors[:3])
            if is_compiling():
                return (*_gradients_in_a_graph(ctx, tensors, grad_output, losses), None, None)
            if not is_plain:
                return (*_watched_gradients(ctx, tensors, grad_output), None, None)
            arguments = (ctx.options, ctx.chunk_rows, tensors, ctx.needs_input_grad, grad_output, losses, statistics)
            *of_layer, of_token_weight = computed_gradients(*arguments, _take_logits(ctx))
            return (*of_layer, None, None, of_token_weight, None, None)


def _is_plain(grad_output: Tensor) -> bool:
    """Whether nobody differentiates, batches or watches this backward."""
    return not (is_watched() or torch.is_grad_enabled() or type(grad_output) is not Tensor or is_batched(grad_output))


def _scale_of_gradients(factor: Tensor | None, grad_output: Tensor) -> float | Tensor | None:
    """What the forward's gradients are to be multiplied by; ``None`` where they do not serve."""
    if factor is not None:
        return factor * grad_output
    scale = grad_output.item()
    return scale if math.isfinite(scale) else None


def _take_gradients(ctx: Any, scale: float | Tensor) -> list[Tensor | None]:
    """What the forward computed, times ``grad_output``. Of a kept graph it is a copy: the caller may write into it."""
    keeps = keeps_graph()
    taken: list[Tensor | None] = []
    for gradient in ctx.gradients:
        if gradient is None:
            taken.append(None)
            continue
        if isinstance(scale, Tensor) or scale != 1:
            gradient = gradient * scale if keeps else gradient.mul_(scale)
        elif keeps and gradient.dtype == ctx.dtype:
            gradient = gradient.clone()
        taken.append(gradient.to(ctx.dtype))
    if not keeps:
        ctx.gradients = None
    return taken


def _take_logits(ctx: Any) -> Tensor | None:
    """Those that the forward kept, to be written over."""
    logits: Tensor | None = ctx.logits
    if logits is not None and keeps_graph():
        return logits.clone()
    ctx.logits = None
    return logits


def computed_gradients(
    options: LinearLossOptions,
    chunk_rows: int | None,
    tensors: Sequence[Tensor | None],
    wanted: Sequence[bool],
    grad_output: Tensor,
    losses: Tensor | None,
    statistics: Tensor | None = None,
    small_logits: Tensor | None = None,
) -> list[Tensor | None]:
    """Of input, weight, bias and, last, token weight, where they are wanted, with the logits computed again or kept.

    Args:
        losses: unweighted, where the token weight's gradient is wanted.
        statistics: of :meth:`LinearProblem.losses_and_statistics`, or ``None``.
        small_logits: of :meth:`LinearChunks.small_logits`, to be written over, or ``None``.
    """
    input, weight, bias, target, class_weight, token_weight = tensors
    assert input is not None and weight is not None and target is not None
    others = (target, class_weight, token_weight)
    problem = LinearProblem(options, chunk_rows, input, weight, bias, *others, keeps_weightless=wanted[5])
    if small_logits is not None:
        problem.chunks.reuse(small_logits)
    scale = (grad_output.double() / problem.denominator()).to(problem.chunks.dtype)
    gradients: list[Tensor | None] = [None, None, None]
    if any(wanted[:3]):
        gradients = problem.gradients(scale, (wanted[0], wanted[1], wanted[2]), statistics)
    rounded = [None if gradient is None else gradient.to(input.dtype) for gradient in gradients]
    if losses is None or token_weight is None:
        return [*rounded, None]
    return [*rounded, (losses * scale).to(token_weight.dtype)]


def gradients_of_constants(
    options: LinearLossOptions, tensors: Sequence[Any], needed: Sequence[bool], grad_output: Tensor
) -> list[Tensor | None]:
    """Of target and class weight, through torch's operators: where a graph was made, nobody seemed to want them."""
    if not any(needed[3:5]):
        return [None, None]
    wanted = [False, False, False, *needed[3:5], False]
    return pulled_back(partial(composite, options), tensors, wanted, grad_output)[3:5]


def _gradients_in_a_graph(
    ctx: Any, tensors: list[Any], grad_output: Tensor, losses: Tensor | None
) -> list[Tensor | None]:
    """Of compiled autograd, whose tracer breaks at :func:`torch.autograd.grad` and may lose what it gives: by the
    operator of ``linear_recomputed.py``."""
    wanted = list(ctx.needs_input_grad[:6])
    losses = grad_output.new_empty(0) if losses is None else losses
    arguments = (grad_output, *tensors, losses, wanted, ctx.chunk_rows, *ctx.options)
    *of_layer, of_token_weight = torch.ops.fused_losses.linear_cross_entropy_recomputed_backward(*arguments)
    found = [*of_layer, None, None, of_token_weight]
    return [gradient if wants else None for gradient, wants in zip(found, wanted, strict=True)]


def _watched_gradients(ctx: Any, tensors: list[Any], grad_output: Tensor) -> list[Tensor | None]:
    """Through torch's operators, with all logits."""
    return pulled_back(partial(composite, ctx.options), tensors, needed_gradients(ctx, tensors), grad_output)


_apply = eager_apply(LinearCrossEntropyFunction)


def fused_linear_cross_entropy(options: LinearLossOptions, chunk_rows: int | None, *tensors: Tensor | None) -> Tensor:
    """The loss in plain eager mode. ``tensors`` are those of :class:`LinearCrossEntropyFunction`."""
    input, weight, bias, target, class_weight, token_weight = tensors
    assert input is not None and weight is not None and target is not None
    if records_graph() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        target = smoothed_target(target, options.label_smoothing)
        return _apply(input, weight, bias, target, class_weight, token_weight, options, chunk_rows)
    with torch.no_grad(), autocast_is_off(input.device.type):
        problem = LinearProblem(options, chunk_rows, input, weight, bias, target, class_weight, token_weight)
        return problem.reduced(problem.losses()).to(options.loss_dtype)
