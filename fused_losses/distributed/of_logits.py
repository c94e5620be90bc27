"""The statistics as functions of each rank's logits, for autograd: the backward sends nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .first_derivative import first_derivative_only
from .shard import NOT_HERE, ShardSums, gradient_of_shard, sums_of_shard
from .statistics import Rows, Statistics, Vocabulary, statistics_of_group

__all__ = ["Differentiable", "gradients_of_sums", "of_logits"]


class Differentiable(NamedTuple):
    """The first fields of :class:`Statistics`. Four of them can be differentiated, once."""

    log_prob: Tensor
    log_sum_exp: Tensor
    entropy: Tensor | None
    weighted_log_prob: Tensor | None
    target_weight: Tensor | None
    argmax: Tensor | None
    num_classes: Tensor | None

    @classmethod
    def of(cls, statistics: Statistics) -> Differentiable:
        return cls(*(getattr(statistics, name) for name in cls._fields))


def of_logits(logits: Tensor, target: Tensor, vocabulary: Vocabulary, error: Exception | None = None) -> Differentiable:
    """Args:
    logits: [..., V_local]
    target: [N], int64, over all shards.
    error: what is wrong with this rank's arguments.
    """
    return Differentiable(*_OfLogits.apply(logits, target, vocabulary, error))  # type: ignore[no-untyped-call]


def gradients_of_sums(
    statistics: Statistics, grad_outputs: tuple[Tensor | None, ...]
) -> tuple[tuple[Tensor | None, Tensor | None, Tensor | None], Tensor | None]:
    """What :func:`gradient_of_shard` is given, of the gradients of the four results.

    d log_prob / dx_c = [c = t] - p_c. Where t is in another shard the operator takes the row for one with an ignored
    target, so there the second part goes with the log-sum-exp's gradient, which is p_c.
    d weighted_log_prob / dx_c = w_c - p_c sum w.
    """
    grad_log_prob, grad_log_sum_exp, grad_entropy, grad_weighted = grad_outputs
    counts = statistics.counts
    of_log_sum_exp = torch.zeros_like(statistics.log_prob) if grad_log_sum_exp is None else grad_log_sum_exp
    if grad_log_prob is not None:
        is_elsewhere = counts & (statistics.local_target == NOT_HERE)
        of_log_sum_exp = of_log_sum_exp - torch.where(is_elsewhere, grad_log_prob, 0)
    if grad_weighted is not None:
        assert statistics.weight_sum is not None
        grad_weighted = torch.where(counts, grad_weighted, 0)
        of_log_sum_exp = of_log_sum_exp - grad_weighted * statistics.weight_sum
    return (grad_log_prob, of_log_sum_exp, grad_entropy), grad_weighted


class _OfLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, vocabulary: Vocabulary, error: Exception | None
    ) -> tuple[Tensor | None, ...]:
        def sweep(local_target: Tensor) -> ShardSums:
            weight, weighted = vocabulary.class_weight, vocabulary.wants_weighted
            return sums_of_shard(logits, local_target, vocabulary.transform, weight, weighted=weighted)

        statistics = statistics_of_group(vocabulary, Rows(target, logits.dtype), sweep, error)
        results = Differentiable.of(statistics)
        ctx.mark_non_differentiable(*(tensor for tensor in results[4:] if tensor is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, *statistics)
        ctx.vocabulary = vocabulary
        return tuple(results)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, *saved = ctx.saved_tensors
        statistics, vocabulary = Statistics(*saved), ctx.vocabulary
        grads, grad_weighted = gradients_of_sums(statistics, grad_outputs[:4])
        gradient = gradient_of_shard(
            grads,
            grad_weighted,
            logits,
            statistics.local_target,
            statistics.saved,
            vocabulary.transform,
            vocabulary.class_weight,
        )
        return gradient, None, None, None
