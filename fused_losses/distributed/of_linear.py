"""The statistics as functions of the input of a linear layer whose classes are spread over a group, for autograd.

Logits exist a few rows at a time: the forward keeps each row's sums, which travel once for all rows, and the backward
computes the logits again. It sends one thing, the gradient of the input, to which every rank's classes add.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..operators.class_axis import accumulation_dtype
from .first_derivative import first_derivative_only
from .of_logits import Differentiable, gradients_of_sums
from .shard import ShardSums, gradient_of_shard, sums_of_shard
from .statistics import Rows, Statistics, Vocabulary, statistics_of_group

__all__ = ["of_linear"]

_LOGITS_PER_CHUNK = 2**22  # 16 MiB of float32: matrix products are at their full speed well before


def of_linear(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    vocabulary: Vocabulary,
    reduce_input_gradient: bool,
    error: Exception | None = None,
) -> Differentiable:
    """Args:
    input: [N, F], the same on all ranks.
    linear_weight: [V_local, F]
    linear_bias: [V_local] or ``None``.
    target: [N], int64, over all shards.
    error: what is wrong with this rank's arguments.
    """
    arguments = (input, linear_weight, linear_bias, target, vocabulary, reduce_input_gradient, error)
    return Differentiable(*_OfLinear.apply(*arguments))  # type: ignore[no-untyped-call]


def _chunks(num_rows: int, num_classes: int) -> Iterator[slice]:
    count = max(1, _LOGITS_PER_CHUNK // max(1, num_classes))
    return (slice(first, first + count) for first in range(0, num_rows, count))


class _OfLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor,
        vocabulary: Vocabulary,
        reduce_input_gradient: bool,
        error: Exception | None,
    ) -> tuple[Tensor | None, ...]:
        def sweep(local_target: Tensor) -> ShardSums:
            weight, weighted = vocabulary.class_weight, vocabulary.wants_weighted
            none = ShardSums.of_nothing(0, accumulation_dtype(input.dtype), input.device)
            parts = [none]
            for rows in _chunks(input.size(0), linear_weight.size(0)):
                logits = torch.nn.functional.linear(input[rows], linear_weight, linear_bias)
                parts.append(sums_of_shard(logits, local_target[rows], vocabulary.transform, weight, weighted=weighted))
            return ShardSums.joined(parts)

        statistics = statistics_of_group(vocabulary, Rows(target, input.dtype), sweep, error)
        results = Differentiable.of(statistics)
        ctx.mark_non_differentiable(*(tensor for tensor in results[4:] if tensor is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, linear_weight, linear_bias, *statistics)
        ctx.vocabulary = vocabulary
        ctx.reduce_input_gradient = reduce_input_gradient
        return tuple(results)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        input, linear_weight, linear_bias, *saved = ctx.saved_tensors
        statistics, vocabulary = Statistics(*saved), ctx.vocabulary
        grads, grad_weighted = gradients_of_sums(statistics, grad_outputs[:4])
        dtype = accumulation_dtype(input.dtype)
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # Sums over chunks, or over ranks, in the type of computation.
        grad_input = torch.zeros_like(input, dtype=dtype) if needs_input else None
        grad_weight = torch.zeros_like(linear_weight, dtype=dtype) if needs_weight else None
        grad_bias = linear_weight.new_zeros(linear_weight.size(0), dtype=dtype) if needs_bias else None
        for rows in _chunks(input.size(0), linear_weight.size(0)):
            logits = torch.nn.functional.linear(input[rows], linear_weight, linear_bias)
            gradient = gradient_of_shard(
                tuple(None if grad is None else grad[rows] for grad in grads),
                None if grad_weighted is None else grad_weighted[rows],
                logits.to(dtype),
                statistics.local_target[rows],
                statistics.saved[:, rows].contiguous(),
                vocabulary.transform,
                vocabulary.class_weight,
            )
            if grad_input is not None:
                grad_input[rows] = gradient.to(linear_weight.dtype) @ linear_weight
            if grad_weight is not None:
                grad_weight.addmm_(gradient.t(), input[rows].to(dtype))
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
        if grad_input is not None:
            if ctx.reduce_input_gradient:
                dist.all_reduce(grad_input, dist.ReduceOp.SUM, vocabulary.group)
            grad_input = grad_input.to(input.dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.to(linear_weight.dtype)
        if grad_bias is not None:
            grad_bias = grad_bias.to(linear_weight.dtype)
        return grad_input, grad_weight, grad_bias, None, None, None, None
