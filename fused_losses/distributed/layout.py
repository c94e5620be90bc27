"""Which classes are whose: the first class of each rank's shard, exchanged once and then known.

Note [Layouts of a vocabulary]
A rank that finds its place in the cache must not go on while another has to ask for its own: the two would speak of
different things and wait for ever. So no rank exchanges anything on its own account. Each says in the first reduction
of a call which exchange its layout is of, by a number that all ranks of that exchange know it under; where they do not
say the same, all exchange their sizes, and the call starts again.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["GIVEN", "Layout", "exchange", "known_layout", "local_targets"]


@dataclass(frozen=True)
class Layout:
    """Where a rank's shard is."""

    vocab_start: int
    number: int
    """Of the exchange that it was found in; below 2**24, so that a float32 holds it."""


GIVEN = 0  # the number of a layout that the caller gave

_Cache = dict[int, Layout]  # by the size of this rank's shard


@dataclass
class _State:
    last_number: int = 0
    layouts: _Cache = field(default_factory=dict)


_states: weakref.WeakKeyDictionary[dist.ProcessGroup, _State] = weakref.WeakKeyDictionary()


def known_layout(group: dist.ProcessGroup, num_classes: int, vocab_start: int | None) -> Layout | None:
    """The layout that was given or that an exchange has found, or ``None``."""
    if vocab_start is not None:
        return Layout(vocab_start, GIVEN)
    state = _states.get(group)
    return None if state is None else state.layouts.get(num_classes)


def exchange(group: dist.ProcessGroup, num_classes: int, vocab_start: int | None, device: torch.device) -> None:
    """Find this rank's place among the shards of the group, in the order of ranks.

    Raises:
        ValueError: on every rank: some ranks have been given their first class, others not.
    """
    state = _states.setdefault(group, _State())
    is_given = vocab_start is not None
    mine = torch.tensor([num_classes, is_given, state.last_number], device=device)
    everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyones, mine, group=group)
    sizes, givens, numbers = torch.stack(everyones).t().tolist()
    if any(givens):
        raise ValueError("vocab_start must be given on every rank of the group, or on none")
    state.last_number = max(numbers) + 1
    first = sum(sizes[: dist.get_rank(group)])
    state.layouts[num_classes] = Layout(first, state.last_number)


def local_targets(target: Tensor, counts: Tensor, vocab_start: int, num_classes: int, not_here: int) -> Tensor:
    """Of each row the target within the shard, or ``not_here``.

    Args:
        target: [N], int64, over all shards.
        counts: [N], whether the target is not ignored.
    """
    local = target - vocab_start
    return torch.where(counts & (local >= 0) & (local < num_classes), local, not_here)
