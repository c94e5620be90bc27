"""The statistics of tokens of a linear layer as a ``torch.autograd.Function``, a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from ..operators.composite import needed_gradients, pulled_back
from ..operators.linear_cross_entropy import autocast_is_off, composite_statistics
from ..operators.registration import below_autograd, is_batched
from ..operators.versions import check_versions, remember_versions
from ..routing import is_compiling, is_watched
from .linear_chunks import LinearChunks
from .linear_gradients import LinearGradients

__all__ = [
    "LinearTokenStatisticsFunction",
    "StatisticsOptions",
    "fused_linear_token_statistics",
    "gradients_of_statistics",
]

StatisticsOptions = tuple[float, float, int]  # logit_scale, softcap (0: none), ignore_index


def _chunks(input: Tensor, weight: Tensor, bias: Tensor | None) -> LinearChunks:
    return LinearChunks(input, weight, bias, (weight.shape[0],), kept=None, chunk_rows=None)


def fused_linear_token_statistics(
    options: StatisticsOptions, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> tuple[Tensor, ...]:
    """Log-probability, log-sum-exp, entropy and argmax of each row, and what the backward needs, (4, N)."""
    parts: list[tuple[Tensor, ...]] = []
    with torch.no_grad(), autocast_is_off(input.device.type), below_autograd():
        chunks = _chunks(input, weight, bias)
        for chunk in chunks:
            parts.append(_ops.token_statistics(chunks.logits(chunks.rows(chunk)), chunk.take(target), *options))
    *results, saved = zip(*parts, strict=True)
    return (*(torch.cat(result) for result in results), torch.cat(saved, 1))


def gradients_of_statistics(
    options: StatisticsOptions,
    tensors: Sequence[Any],
    saved: Tensor,
    wanted: tuple[bool, bool, bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Of input, weight and bias, as far as they are wanted."""
    input, weight, bias, target = tensors
    with torch.no_grad(), autocast_is_off(input.device.type), below_autograd():
        chunks = _chunks(input, weight, bias)
        gradients = LinearGradients(chunks, wanted)
        for chunk in chunks:
            rows = chunks.rows(chunk)
            logits = chunks.logits(rows)
            of_chunk = [None if grad is None else chunk.take(grad) for grad in grads]
            gradient_of = partial(
                _gradient_of_rows, options, of_chunk, logits, chunk.take(target), saved[:, chunk.begin : chunk.end]
            )
            gradients.add(chunk, rows, chunks.gradient_over(logits, gradient_of))
    return [None if gradient is None else gradient.to(input.dtype) for gradient in gradients.total()]


def _gradient_of_rows(
    options: StatisticsOptions,
    grads: Sequence[Tensor | None],
    logits: Tensor,
    target: Tensor,
    saved: Tensor,
    rows: slice,
) -> Tensor:
    grads_of_rows = [None if grad is None else grad[rows] for grad in grads]
    arguments = (*grads_of_rows, logits[rows], target[rows], saved[:, rows].contiguous(), *options)
    return _ops.token_statistics_backward(*arguments)


class LinearTokenStatisticsFunction(torch.autograd.Function):
    r"""Log-probability, log-sum-exp, entropy and argmax of the rows of :math:`x W^\top + b`.

    The backward computes the logits again, a chunk at a time: see ``csrc/core/token_statistics.h`` for their gradient.

    Args of :meth:`apply`, by position:
        input: :math:`(N, F)`.
        weight: :math:`(V, F)`.
        bias: :math:`(V)`, or ``None``.
        target: class indices :math:`(N)`.
        options: ``logit_scale``, ``softcap`` (0 for none) and ``ignore_index``.

    Returns:
        The four statistics, each :math:`(N)`.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, options: StatisticsOptions
    ) -> tuple[Tensor, ...]:
        *results, saved = fused_linear_token_statistics(options, input, weight, bias, target)
        ctx.mark_non_differentiable(results[-1])
        ctx.set_materialize_grads(False)
        ctx.options = options
        remember_versions(saved, input, weight, bias)
        ctx.save_for_backward(input, weight, bias, target, saved)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, saved = ctx.saved_tensors
        check_versions(saved, *tensors[:3])
        grads = grad_outputs[:3]
        if all(grad is None for grad in grads):
            return (None,) * 5
        if is_compiling():  # compiled autograd, see the linear loss's
            wanted = list(ctx.needs_input_grad[:3])
            found = torch.ops.fused_losses.linear_token_statistics_backward(
                *grads, *tensors, saved, wanted, *ctx.options
            )
            return (*(g if wants else None for g, wants in zip(found, wanted, strict=True)), None, None)
        if _is_watched_backward(grads):
            return (*_watched_gradients(ctx, tensors, grads), None, None)
        return (*gradients_of_statistics(ctx.options, tensors, saved, ctx.needs_input_grad[:3], grads), None, None)


def _is_watched_backward(grads: tuple[Tensor | None, ...]) -> bool:
    return is_watched() or torch.is_grad_enabled() or any(grad is not None and is_batched(grad) for grad in grads)


def _watched_gradients(ctx: Any, tensors: Sequence[Any], grads: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Through torch's operators, with all logits."""
    *layer, target = tensors

    def used_results(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        results = composite_statistics(ctx.options, input, weight, bias, target)[:3]
        return tuple(result for result, grad in zip(results, grads, strict=True) if grad is not None)

    used_grads = tuple(grad for grad in grads if grad is not None)
    return pulled_back(used_results, layer, needed_gradients(ctx, layer), used_grads)
