"""The statistics of rows whose classes are spread over a group: from each shard's sums, by two small reductions.

Note [Two reductions]
The first is the largest unit of each row. The second adds up what Note [Sums of a shard] lists, relative to that, and
the target's unit, which one rank has. Both go over [k, N] numbers of the type of computation; nothing of the logits'
size is sent. In the tail of the first stands whether all ranks can go on: the number of the layout, both ways round, so
that the maximum tells whether all are the same, and the rank that raised an error. On a CPU that is read at once. On a
GPU it is read after the second reduction, so that nobody waits between the two; a rank whose options are wrong might
ask for other sums than the rest, so all rows there are go into that reduction, those that nobody asked for as zeros.
A rank whose arguments are wrong takes part as a shard without classes and raises its error then; all others raise one
that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..operators.class_axis import accumulation_dtype
from ..operators.logit_transform import LogitTransform
from .layout import exchange, known_layout, local_targets
from .shard import NOT_HERE, ShardSums, sums_of_shard

__all__ = ["Statistics", "Vocabulary", "reads_at_once", "statistics_of_group", "statistics_of_logits"]

_ROWS = ("others", "target_z", "owners", "times_x", "target_weight", "weighted")  # of the second reduction, in order
_NO_CLASS = torch.iinfo(torch.int64).max
_BEFORE_ANY_CLASS = -(2**62)  # added to the class of a NaN, which is taken for the largest


@dataclass(frozen=True)
class Vocabulary:
    """This rank's classes, and what is asked of all."""

    group: dist.ProcessGroup
    num_classes: int  # of this shard
    vocab_start: int | None
    class_weight: Tensor | None  # [num_classes]
    transform: LogitTransform
    ignore_index: int
    wants_entropy: bool = False
    wants_weighted: bool = False
    wants_argmax: bool = False


class Statistics(NamedTuple):
    """Of each row over all shards; [N] each, in the type of computation, and equal on all ranks.

    What was not asked for is 0.
    """

    log_prob: Tensor
    """0 where the target is ignored."""
    log_sum_exp: Tensor
    entropy: Tensor
    weighted_log_prob: Tensor
    """sum w_c log p_c, 0 where the target is ignored."""
    target_weight: Tensor
    """The class weight of the target, without class weights 1; 0 where it is ignored."""
    argmax: Tensor
    """int64"""
    saved: Tensor
    """[4, N]: what the backward of each shard asks for."""
    local_target: Tensor
    """int64, within this rank's shard."""
    counts: Tensor
    """Whether the target is not ignored, bool."""
    totals: Tensor
    """[2]: sum w_c and the number of classes; beside weighted_log_prob."""


def statistics_of_logits(logits: Tensor, target: Tensor, vocabulary: Vocabulary, error: Exception | None) -> Statistics:
    """The statistics of the rows over all shards, from this rank's shard of the logits.

    Args:
        logits: [..., V_local].
        target: [N], int64, over all shards.
        vocabulary: this rank's classes, and what is asked of all.
        error: as for :func:`statistics_of_group`.
    """

    def sweep(local_target: Tensor) -> ShardSums:
        weight, weighted = vocabulary.class_weight, vocabulary.wants_weighted
        return sums_of_shard(logits, local_target, vocabulary.transform, weight, weighted=weighted)

    return statistics_of_group(vocabulary, target, accumulation_dtype(logits.dtype), sweep, error)


def statistics_of_group(
    vocabulary: Vocabulary,
    target: Tensor,
    dtype: torch.dtype,
    sweep: Callable[[Tensor], ShardSums],
    error: Exception | None,
) -> Statistics:
    """The statistics of the rows over all shards, from the sums of each.

    Args:
        vocabulary: this rank's classes, and what is asked of all.
        target: [N], int64, over all shards.
        dtype: the type of computation.
        sweep: from the targets within the shard, [N], to the sums of the shard.
        error: what is wrong with this rank's arguments: see Note [Two reductions].
    """
    while True:
        outcome = _attempt(vocabulary, target, dtype, sweep, error)
        if not isinstance(outcome, _LayoutsDiffer):
            return outcome
        exchange(vocabulary.group, vocabulary.num_classes, vocabulary.vocab_start, target.device)


class _LayoutsDiffer:
    """Nothing was computed: see Note [Layouts of a vocabulary]."""


def _attempt(
    vocabulary: Vocabulary,
    target: Tensor,
    dtype: torch.dtype,
    sweep: Callable[[Tensor], ShardSums],
    error: Exception | None,
) -> Statistics | _LayoutsDiffer:
    counts = target != vocabulary.ignore_index
    layout = known_layout(vocabulary.group, vocabulary.num_classes, vocabulary.vocab_start)
    local_target = torch.full_like(target, NOT_HERE)
    sums = ShardSums.of_nothing(target.numel(), dtype, target.device)
    if layout is not None and error is None:
        local_target = local_targets(target, counts, layout.vocab_start, vocabulary.num_classes, NOT_HERE)
        try:
            sums = sweep(local_target)
        except Exception as raised:  # the other ranks wait in the reductions
            error = raised
    number = torch.inf if layout is None else layout.number
    failed = 0 if error is None else dist.get_rank(vocabulary.group) + 1
    # Filled on the device: a copy from the host could make it wait.
    tail = (sums.key.new_full((1,), value) for value in (number, -number, failed))
    largest = torch.cat((sums.key, *tail))
    dist.all_reduce(largest, dist.ReduceOp.MAX, vocabulary.group)
    key, agreement = largest[:-3], largest[-3:]
    has_read = reads_at_once(largest)
    if has_read and not _can_go_on(agreement, error):
        return _LayoutsDiffer()
    argmax, argmax_under_way = _begin_argmax(vocabulary, sums, key, 0 if layout is None else layout.vocab_start)
    packed = _Packed(vocabulary, sums, key, local_target, with_all_rows=not has_read)
    dist.all_reduce(packed.numbers, dist.ReduceOp.SUM, vocabulary.group)
    if argmax_under_way is not None:
        argmax_under_way.wait()

    if not has_read and not _can_go_on(agreement, error):
        return _LayoutsDiffer()
    packed.check_owners(target, counts)
    return packed.statistics(counts, argmax)


def reads_at_once(reduced: Tensor) -> bool:
    """Whether the host has the result of a reduction without waiting: see Note [Two reductions]."""
    return reduced.is_cpu


def _can_go_on(agreement: Tensor, error: Exception | None) -> bool:
    """Whether all ranks know the same layout; raises where one of them has an error."""
    highest, negated_lowest, failed_rank = agreement.tolist()
    if error is not None:
        raise error
    if failed_rank:
        raise RuntimeError(f"rank {int(failed_rank) - 1} of the group raised an error in this call")
    return bool(highest == -negated_lowest and highest != torch.inf)


def _begin_argmax(
    vocabulary: Vocabulary, sums: ShardSums, key: Tensor, vocab_start: int
) -> tuple[Tensor | None, dist.Work | None]:
    """The first class of the largest x: a reduction of its own, since a float32 does not hold a class's number.

    It runs beside the packed one. No rank's number, of rows where a class is NaN, is the number before any.
    """
    if not vocabulary.wants_argmax:
        return None, None
    is_here = ((sums.key == key) | sums.has_nan) & (vocabulary.num_classes > 0)
    argmax = torch.where(is_here, sums.argmax + vocab_start, _NO_CLASS)
    argmax = torch.where(sums.has_nan, argmax + _BEFORE_ANY_CLASS, argmax)
    return argmax, dist.all_reduce(argmax, dist.ReduceOp.MIN, vocabulary.group, async_op=True)


class _Packed:
    """The second reduction: the rows of its tensor, and what they say once they are added up."""

    def __init__(
        self, vocabulary: Vocabulary, sums: ShardSums, key: Tensor, local_target: Tensor, *, with_all_rows: bool
    ) -> None:
        transform, weight = vocabulary.transform, vocabulary.class_weight
        self._vocabulary = vocabulary
        self._local_target = local_target
        # The unit of M; where all x are -inf any number, so that their exponentials become 0, not NaN.
        self._shift = torch.where(key == -torch.inf, 0, key) * transform.sign
        change = torch.where(sums.key == -torch.inf, 0, (sums.key * transform.sign - self._shift) * transform.factor)
        change = torch.where(sums.key == key, 0, change)  # of two infinities too
        factor = change.exp()
        is_here = local_target != NOT_HERE
        target_z = (sums.target_unit - self._shift) * transform.factor
        rows = {
            "others": torch.where(sums.total == torch.inf, torch.inf, sums.others * factor),
            "target_z": torch.where(is_here, target_z, 0),
            "owners": is_here.to(factor.dtype),
        }
        if vocabulary.wants_entropy:
            rows["times_x"] = torch.where(factor == 0, 0, factor * (sums.times_x + change * sums.total))
        if weight is not None:
            at_target = weight[local_target.clamp(min=0)] if weight.numel() else torch.zeros_like(factor)
            rows["target_weight"] = torch.where(is_here, at_target, 0)
        tail: list[Tensor] = []
        if vocabulary.wants_weighted:
            weight_sum = factor.new_full((), vocabulary.num_classes) if weight is None else weight.sum()
            rows["weighted"] = sums.weighted + torch.where(change == 0, 0, change * weight_sum)
            tail = [torch.stack((weight_sum, factor.new_full((), vocabulary.num_classes)))]
        if with_all_rows:
            rows = {name: rows[name] if name in rows else torch.zeros_like(factor) for name in _ROWS}
            tail = tail or [factor.new_zeros(2)]
        self._names = [name for name in _ROWS if name in rows]
        self.numbers = torch.cat([*(rows[name] for name in self._names), *tail])

    def _rows(self) -> dict[str, Tensor]:
        num_rows = self._local_target.numel()
        rows = self.numbers[: len(self._names) * num_rows].view(len(self._names), num_rows)
        return dict(zip(self._names, rows, strict=True))

    def check_owners(self, target: Tensor, counts: Tensor) -> None:
        owners = self._rows()["owners"]
        is_wrong = counts & (owners != 1)
        if not is_wrong.any():
            return
        first = is_wrong.nonzero()[0]
        if owners[first] > 1:
            raise ValueError(f"class {target[first].item()} is in the shards of {int(owners[first].item())} ranks")
        raise IndexError(f"Target {target[first].item()} is out of bounds.")

    def statistics(self, counts: Tensor, argmax: Tensor | None) -> Statistics:
        rows, vocabulary = self._rows(), self._vocabulary
        is_infinite = rows["others"] == torch.inf
        others, target_z = torch.where(is_infinite, torch.nan, rows["others"]), rows["target_z"]
        total = others + torch.where(counts, target_z.exp(), 0)
        # Where the target is the largest, S is 1 and the others, which log1p does not lose: Note [Confident rows] in
        # csrc/core/cross_entropy.h.
        log_sum = torch.where(counts & (target_z == 0), others.log1p(), total.log())
        log_prob = torch.where(counts, target_z - log_sum, 0)
        log_sum_exp = torch.where(is_infinite, torch.inf, self._shift * vocabulary.transform.factor + log_sum)
        times_x = rows["times_x"] if vocabulary.wants_entropy else None
        weighted = rows["weighted"] if vocabulary.wants_weighted else None
        zeros = torch.zeros_like(total)
        totals = self.numbers[-2:].clone() if weighted is not None else zeros.new_zeros(2)
        target_weight = None if vocabulary.class_weight is None else rows["target_weight"]
        if argmax is None:
            argmax = torch.zeros_like(self._local_target)
        return Statistics(
            log_prob=log_prob,
            log_sum_exp=log_sum_exp,
            entropy=zeros if times_x is None else log_sum - times_x / total,
            weighted_log_prob=zeros
            if weighted is None
            else torch.where(counts, _of_dense(totals[0], log_sum, weighted), 0),
            target_weight=counts.to(total.dtype) if target_weight is None else target_weight.clone(),
            argmax=torch.where(argmax < 0, argmax - _BEFORE_ANY_CLASS, argmax),
            saved=torch.stack((self._shift, total, others, zeros if times_x is None else times_x)),
            local_target=self._local_target,
            counts=counts,
            totals=totals,
        )


def _of_dense(mass: Tensor, log_sum: Tensor, mass_times_x: Tensor) -> Tensor:
    """The negated loss of the dense mass, as in ``csrc/core/cross_entropy_formulas.h``."""
    return torch.where(mass == torch.inf, -(mass + log_sum), mass_times_x - mass * log_sum)
