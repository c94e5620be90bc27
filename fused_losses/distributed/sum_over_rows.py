"""The reduced loss of rows that a mesh spreads: from each rank's sum and denominator, by one small reduction.

Note [A mean over ranks]
The mean of all rows is the sum of all over what counts of all. The mean of the ranks' means is another number wherever
their rows do not count alike: where they have ignored or no targets, other class weights, or not as many rows.

In the same reduction stands how many ranks have raised an error, and which: no rank may leave the others waiting. On a
CPU that is read at once. A GPU's host does not wait for it: there the others have a loss of NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from .statistics import reads_at_once

__all__ = ["sum_over_rows"]


def sum_over_rows(
    compute: Callable[[], tuple[Tensor, Tensor]], mesh: DeviceMesh, by_rows: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What ``compute`` returns of this rank's rows, a sum and a denominator, of all rows. On the others the same.

    Args:
        compute: may raise an error, on some ranks only.
        mesh: of the ranks.
        by_rows: the dimensions of the mesh that rows are spread over.
        dtype: of both numbers.

    Raises:
        RuntimeError: another rank has raised an error, which it says itself.
    """
    if not by_rows:
        return compute()
    groups = tuple(mesh.get_group(dimension) for dimension in by_rows)
    error: Exception | None = None
    try:
        parts = torch.stack(compute())
    except Exception as raised:  # the other ranks wait in the reduction
        error = raised
        parts = torch.full((2,), torch.nan, dtype=dtype, device=mesh.device_type)
    # Filled on the device: a copy from the host could make it wait.
    tail = [parts.new_full((1,), value if error else 0) for value in (1, dist.get_rank())]
    parts = _SumOverRanks.apply(torch.cat((parts, *tail)), groups)  # type: ignore[no-untyped-call]
    if error is not None:
        raise error
    if reads_at_once(parts):
        num_failed, failed_rank = parts[2:].tolist()
        if num_failed:
            who = f"rank {int(failed_rank)}" if num_failed == 1 else f"{int(num_failed)} ranks"
            raise RuntimeError(f"{who} raised an error in this call")
    return parts[0], parts[1].detach()


class _SumOverRanks(torch.autograd.Function):
    """Of what every rank computes the same from; its derivative's derivative is it again, and so on."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, groups: tuple[dist.ProcessGroup, ...]) -> Tensor:
        ctx.groups = groups
        total = part.clone()
        for group in groups:
            dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        gradient: Tensor = _SameOnRanks.apply(grad_output, ctx.groups)  # type: ignore[no-untyped-call]
        return gradient, None


class _SameOnRanks(torch.autograd.Function):
    """What is the same on all ranks, of which each computes something of its own."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, groups: tuple[dist.ProcessGroup, ...]) -> Tensor:
        ctx.groups = groups
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        gradient: Tensor = _SumOverRanks.apply(grad_output, ctx.groups)  # type: ignore[no-untyped-call]
        return gradient, None
