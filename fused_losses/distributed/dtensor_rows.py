"""Losses of DTensors that are replicated, or whose rows are spread over a mesh: each rank's kernel takes its own rows.

Torch's mean of class indices over spread rows is the mean of the ranks' means: Note [A mean over ranks] in
``sum_over_rows.py``. Rows are all axes but the class axis; of the elementwise losses every axis is one of rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from ..operators.class_axis import accumulation_dtype
from ..operators.registration import NONE, SUM
from ..routing import records_graph, without_waiting_wrapper
from .local_losses import LOSSES, LocalLoss
from .sum_over_rows import sum_over_rows

__all__ = ["loss_of_rows", "refusal"]

_Weights = tuple[Tensor | None, ...]
_Options = tuple[object, ...]


def refusal(name: str, input: DTensor, target: Tensor, weights: _Weights, options: _Options) -> str | None:
    """Why torch takes the call, or ``None``: the same on all ranks, whatever rows they have."""
    if input.numel() == 0:
        return "the input is empty"
    for tensor in (target, *weights):
        if tensor is None:
            continue
        if not (type(tensor) is DTensor or _is_replicated_implicitly(tensor)):
            return "not all tensors are DTensors"
        if tensor.device != input.device:
            return "the tensors are on several devices"
        if tensor.requires_grad and records_graph():
            return "a target or weight requires a gradient"
    loss = LOSSES[name]
    if (reason := loss.refusal(input, target, weights, options)) is not None:
        return reason
    axis = loss.class_dim(input)
    if any(placement == Shard(axis) for placement in input.placements if axis is not None):
        return "the classes are spread, and the loss is another than cross_entropy of (batch, classes)"
    if not all(_is_in_order(placement) for placement in input.placements):
        return "the input is not spread in its order"
    return None


def loss_of_rows(
    name: str, input: DTensor, target: Tensor, weights: _Weights, reduction: str, options: _Options
) -> Tensor:
    """A replicated DTensor, or of losses that are not reduced one that is placed as the rows.

    What of the input is a part is summed up first, as torch does.
    """
    loss, mesh = LOSSES[name], input.device_mesh
    placements = [placement if placement.is_shard() else Replicate() for placement in input.placements]
    axis, by_class = loss.class_dim(input), target.dim() < input.dim()
    of_losses = placements if axis is None else [_without_axis(placement, axis) for placement in placements]
    rows = _local(input, mesh, placements)
    indices = _local(target, mesh, of_losses if by_class else placements)
    own_weights = tuple(
        None if weight is None else _local(weight, mesh, _of_weight(weight, input, loss, placements))
        for weight in weights
    )
    if reduction == "none":
        losses = loss.compute(rows, indices, own_weights, NONE, options).contiguous()
        shape = input.shape if axis is None else input.shape[:axis] + input.shape[axis + 1 :]
        strides = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(losses, mesh, of_losses, run_check=False, shape=shape, stride=strides)

    num_terms = loss.num_terms(input, target) if reduction == "mean" else 1.0

    def sum_and_denominator() -> tuple[Tensor, Tensor]:
        total = loss.compute(rows, indices, own_weights, SUM, options)
        if num_terms is not None:
            return total, torch.zeros_like(total)
        return total, loss.denominator(rows, indices, own_weights, options).to(total.dtype)

    dtype = loss.result_dtype(input, target)
    by_rows = [i for i, placement in enumerate(placements) if placement.is_shard()]
    total, denominator = sum_over_rows(sum_and_denominator, mesh, by_rows, accumulation_dtype(dtype))
    total = total / (denominator if num_terms is None else num_terms)
    return DTensor.from_local(total.to(dtype), mesh, [Replicate()] * mesh.ndim, run_check=False)


def _local(tensor: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> Tensor:
    """This rank's part of the tensor, so placed."""
    spread = tensor if type(tensor) is DTensor else DTensor.from_local(tensor, mesh, run_check=False)
    if spread.placements != tuple(placements):
        spread = spread.redistribute(placements=placements)
    return without_waiting_wrapper(spread.to_local())


def _of_weight(weight: Tensor, input: Tensor, loss: LocalLoss, placements: Sequence[Placement]) -> list[Placement]:
    """How a weight must be placed beside an input: one of classes as a whole, any other as it is broadcast."""
    if loss.class_dim(input) is not None:
        return [Replicate() for _ in placements]
    num_missing = input.dim() - weight.dim()
    return [
        Shard(placement.dim - num_missing)
        if isinstance(placement, Shard)
        and placement.dim >= num_missing
        and weight.size(placement.dim - num_missing) > 1
        else Replicate()
        for placement in placements
    ]


def _without_axis(placement: Placement, axis: int) -> Placement:
    return Shard(placement.dim - 1) if isinstance(placement, Shard) and placement.dim > axis else placement


def _is_in_order(placement: Placement) -> bool:
    """``_StridedShard`` is not, which some versions of torch take for a ``Shard`` and others do not."""
    return type(placement) is Shard or placement.is_replicate() or placement.is_partial()


def _is_replicated_implicitly(tensor: Tensor) -> bool:
    """Whether torch takes a plain tensor beside DTensors."""
    return tensor.numel() == 1 or DTensor._op_dispatcher._allow_implicit_replication
