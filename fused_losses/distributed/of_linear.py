"""The statistics of a linear layer's output, and the gradients of the layer, a chunk of rows at a time.

Logits exist a few rows at a time: the forward keeps each row's sums, which travel once for all rows, and the backward
computes the logits again. It sends one thing, the gradient of the input, to which every rank's classes add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor

from ..autograd.linear_chunks import LinearChunks
from ..autograd.linear_gradients import LinearGradients
from ..operators.class_axis import accumulation_dtype
from .shard import GradientsOfSums, ShardSums, gradient_of_shard, sums_of_shard
from .statistics import Statistics, Vocabulary, statistics_of_group

__all__ = ["Layer", "gradients_of_layer", "statistics_of_layer"]


class Layer(NamedTuple):
    """A linear layer of this rank's classes, and its input."""

    input: Tensor
    """[N, F], the same on all ranks."""
    weight: Tensor
    """[V_local, F]"""
    bias: Tensor | None
    """[V_local]"""

    @classmethod
    def of(cls, input: Tensor, weight: Tensor, bias: Tensor | None) -> Layer:
        """With an input of any number of axes."""
        return cls(input.reshape(-1, input.size(-1)), weight, bias)

    def chunks(self) -> LinearChunks:
        return LinearChunks(*self, (self.weight.size(0),), kept=None, chunk_rows=None)


def statistics_of_layer(layer: Layer, target: Tensor, vocabulary: Vocabulary, error: Exception | None) -> Statistics:
    """The statistics of the rows over all shards, from this rank's shard of the layer, chunk by chunk.

    Args:
        layer: this rank's shard.
        target: [N], int64, over all shards.
        vocabulary: this rank's classes, and what is asked of all.
        error: as for :func:`.statistics.statistics_of_group`.
    """
    dtype = accumulation_dtype(layer.input.dtype)

    def sweep(local_target: Tensor) -> ShardSums:
        transform, weight, weighted = vocabulary.transform, vocabulary.class_weight, vocabulary.wants_weighted
        parts = [ShardSums.of_nothing(0, dtype, target.device)]
        chunks = layer.chunks()
        for chunk in chunks:
            logits = chunks.logits(chunks.rows(chunk))
            parts.append(sums_of_shard(logits, chunk.take(local_target), transform, weight, weighted=weighted))
        return ShardSums.joined(parts)

    return statistics_of_group(vocabulary, target, dtype, sweep, error)


def gradients_of_layer(
    layer: Layer,
    gradients: GradientsOfSums,
    local_target: Tensor,
    saved: Tensor,
    vocabulary: Vocabulary,
    wanted: Sequence[bool],
    reduce_input_gradient: bool,
) -> list[Tensor | None]:
    """Of input, weight and bias, where they are wanted, in their type; sums over chunks and ranks are of the type of
    computation.
    """
    chunks = layer.chunks()
    sums = LinearGradients(chunks, (wanted[0], wanted[1], wanted[2]))
    for chunk in chunks:
        rows = chunks.rows(chunk)
        logits = chunks.logits(rows)

        def gradient_of(part: slice, begin: int = chunk.begin, logits: Tensor = logits) -> Tensor:
            place = slice(begin + part.start, begin + part.stop)
            arguments = (logits[part], local_target[place], saved[:, place].contiguous())
            return gradient_of_shard(gradients.rows(place), *arguments, vocabulary.transform, vocabulary.class_weight)

        sums.add(chunk, rows, chunks.gradient_over(logits, gradient_of))
    of_input, of_weight, of_bias = sums.total()
    if of_input is not None and reduce_input_gradient:
        of_input = of_input.to(chunks.dtype)  # on every rank, whatever its processor multiplies
        dist.all_reduce(of_input, dist.ReduceOp.SUM, vocabulary.group)
    return [None if gradient is None else gradient.to(layer.input.dtype) for gradient in (of_input, of_weight, of_bias)]
