"""What one rank finds in its own classes: sums over the rows of its shard, and the gradient of its logits.

Note [Sums of a shard]
With the x_c of Note [Token statistics] in ``csrc/core/token_statistics.h`` a shard has, for each row, m = max(x_c) and

    S = sum exp(x_c - m)   S' = S without the target   T = sum exp(x_c - m) (x_c - m)   D = sum w_c (x_c - m)

Relative to the largest x of all shards, M, with d = m - M, they are

    exp(d) S   exp(d) S'   exp(d) (T + d S)   D + d sum w_c

which add up to what one process would find, and the gradient of a shard follows from the sums over all. m is kept as
its *unit*, the number that x is a constant times of: differences are taken of units, so that the largest x has exactly
0. D is what label smoothing asks for; w_c is the class weight or 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..operators.class_axis import accumulation_dtype
from ..operators.logit_transform import LogitTransform
from ..operators.registration import call
from ..operators.token_statistics import refusal
from .without_kernels import token_gradient, token_sums

__all__ = ["NOT_HERE", "GradientsOfSums", "ShardSums", "gradient_of_shard", "row_blocks", "sums_of_shard"]

NOT_HERE = -1  # the target of a row whose target this shard does not own, or that is ignored
_ELEMENTS_PER_BLOCK = 2**18  # 1 MiB of float32, in the cache of a core


class ShardSums(NamedTuple):
    """Of each row of a shard; [N] each, in the type of computation. See Note [Sums of a shard]."""

    key: Tensor
    """The unit of m in the order of x; -inf where all x are, or a NaN is among them."""
    total: Tensor
    """S; inf where the largest x is."""
    others: Tensor
    """S'"""
    times_x: Tensor
    """T"""
    weighted: Tensor
    """D, or 0 where it was not asked for."""
    target_unit: Tensor
    """The unit of the target's x, 0 where it is not here."""
    argmax: Tensor
    """Within the shard, int64."""
    has_nan: Tensor
    """bool"""

    @classmethod
    def of_nothing(cls, num_rows: int, dtype: torch.dtype, device: torch.device) -> ShardSums:
        """Of a shard without classes."""
        zeros = torch.zeros(num_rows, dtype=dtype, device=device)
        key = torch.full_like(zeros, -torch.inf)
        return cls(key, zeros, zeros, zeros, zeros, zeros, zeros.long(), zeros.bool())

    @classmethod
    def joined(cls, parts: list[ShardSums]) -> ShardSums:
        """Of the rows of all parts."""
        return parts[0] if len(parts) == 1 else cls(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


class GradientsOfSums(NamedTuple):
    """Of a shard's sums, in the type of computation; [N] each, or ``None`` for 0."""

    log_prob: Tensor | None
    log_sum_exp: Tensor | None
    entropy: Tensor | None
    weighted: Tensor | None
    """Of sum w_c x_c."""

    def rows(self, rows: slice) -> GradientsOfSums:
        return GradientsOfSums(*(None if gradient is None else gradient[rows] for gradient in self))


def sums_of_shard(
    logits: Tensor, local_target: Tensor, transform: LogitTransform, class_weight: Tensor | None, *, weighted: bool
) -> ShardSums:
    """The sums of each row of this shard's logits.

    Args:
        logits: [..., V_local], rows of any stride.
        local_target: [N], the number of rows; int64; :data:`NOT_HERE` where no class of the shard is the target.
        transform: from the logits to what softmax takes.
        class_weight: [V_local] for the weighted sum; all 1 if ``None``.
        weighted: whether that sum is asked for.
    """
    dtype = accumulation_dtype(logits.dtype)
    if logits.numel() == 0:
        return ShardSums.of_nothing(local_target.numel(), dtype, logits.device)
    _, log_sum_exp, _, argmax, saved = _token_sums(logits, local_target, transform)
    shift, total, others, times_x = saved
    is_infinite = log_sum_exp == torch.inf
    key = torch.where((total > 0) | is_infinite, shift * transform.sign, -torch.inf)
    return ShardSums(
        key=key,
        total=torch.where(is_infinite, torch.inf, total),
        others=others,
        times_x=times_x,
        weighted=_weighted_sum(logits, shift, transform, class_weight) if weighted else torch.zeros_like(total),
        target_unit=_unit_of_target(logits, local_target, transform),
        argmax=argmax,
        has_nan=log_sum_exp.isnan(),
    )


def gradient_of_shard(
    gradients: GradientsOfSums,
    logits: Tensor,
    local_target: Tensor,
    saved: Tensor,
    transform: LogitTransform,
    class_weight: Tensor | None,
) -> Tensor:
    """Of the logits, in their type.

    Args:
        saved: [4, N]: the unit of M, and S, S' and T of all shards.
    """
    if logits.numel() == 0:
        return torch.zeros_like(logits)
    if gradients.weighted is None:
        return _token_gradient(gradients, logits, local_target, saved, transform)
    dtype = accumulation_dtype(logits.dtype)
    gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    gradient_rows = gradient.view(-1, logits.size(-1))
    for rows, logits_of_rows in row_blocks(logits):
        block = logits_of_rows.to(dtype)  # so that a 16-bit gradient is rounded once
        of_rows = gradients.rows(rows)
        part = _token_gradient(of_rows, block, local_target[rows], saved[:, rows].contiguous(), transform)
        assert of_rows.weighted is not None
        mass = of_rows.weighted.unsqueeze(1)
        # Whatever is in a row that has no gradient.
        mass = torch.where(mass == 0, 0, mass * transform.derivative(transform.unit(block)))
        gradient_rows[rows] = part.add_(mass if class_weight is None else mass * class_weight)
    return gradient


def row_blocks(logits: Tensor, first: int = 0) -> Iterator[tuple[slice, Tensor]]:
    """The rows in small parts, each with its place among all; no copies, whatever the strides."""
    *sizes, num_classes = logits.shape
    strides = logits.stride()
    if any(strides[i] != strides[i + 1] * sizes[i + 1] for i in range(len(sizes) - 1)):
        for part in logits:
            yield from row_blocks(part, first)
            first += math.prod(sizes[1:])
        return
    rows = logits.view(-1, num_classes)
    count = max(1, _ELEMENTS_PER_BLOCK // num_classes)
    for begin in range(0, rows.size(0), count):
        end = min(begin + count, rows.size(0))
        yield slice(first + begin, first + end), rows[begin:end]


def _token_sums(logits: Tensor, target: Tensor, transform: LogitTransform) -> tuple[Tensor, ...]:
    """Results of [N] each."""
    options, target = (*transform, NOT_HERE), target.view(logits.shape[:-1])
    if refusal(logits, target, *options) is None:
        *results, saved = call("token_statistics", logits, target, *options)
        return (*(result.view(-1) for result in results), saved)
    return token_sums(logits.reshape(-1, logits.size(-1)), target.view(-1), *options)


def _token_gradient(
    gradients: GradientsOfSums, logits: Tensor, target: Tensor, saved: Tensor, transform: LogitTransform
) -> Tensor:
    grads = gradients[:3]
    options, sizes = (*transform, NOT_HERE), logits.shape[:-1]
    if refusal(logits, target.view(sizes), *options) is None:
        shaped = (None if grad is None else grad.view(sizes) for grad in grads)
        gradient: Tensor = call("token_statistics_backward", *shaped, logits, target.view(sizes), saved, *options)
        return gradient
    return token_gradient(grads, logits.reshape(-1, logits.size(-1)), target, saved, *options).view(logits.shape)


def _unit_of_target(logits: Tensor, local_target: Tensor, transform: LogitTransform) -> Tensor:
    is_here = local_target != NOT_HERE
    index = local_target.clamp(min=0).view(logits.shape[:-1]).unsqueeze(-1)
    target_logit = logits.gather(-1, index).view(-1, 1)
    if transform.softcap:
        # Of one class the largest is that class, and its tangent has the very bits that the row's largest has.
        *_, saved = _token_sums(target_logit, torch.full_like(local_target, NOT_HERE), transform)
        unit = saved[0]
    else:
        unit = target_logit.to(accumulation_dtype(logits.dtype)).squeeze(1)
    return torch.where(is_here, unit, 0)


def _weighted_sum(logits: Tensor, shift: Tensor, transform: LogitTransform, class_weight: Tensor | None) -> Tensor:
    """sum w_c (x_c - m), block by block: nothing of the logits' size is made."""
    result = torch.empty_like(shift)
    for rows, block in row_blocks(logits):
        z = (transform.unit(block.to(shift.dtype)) - shift[rows].unsqueeze(1)) * transform.factor
        result[rows] = z.sum(1) if class_weight is None else z.mv(class_weight)
    return result
