"""Cross-entropy of DTensors whose classes are spread over a dimension of a mesh, with batches over others or without.

Torch gathers such logits, or inside its ``loss_parallel()`` makes log-probabilities of their size. What is not
described here goes to torch as before.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ..operators.class_axis import accumulation_dtype
from ..operators.cross_entropy import is_probability, loss_dtype
from ..operators.cross_entropy import refusal as refusal_of_cross_entropy
from ..routing import promotes
from .loss import Kept, LossOptions
from .operators import cross_entropy
from .sum_over_rows import sum_over_rows

__all__ = ["cross_entropy_of_dtensors", "refusal"]


def refusal(
    input: DTensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> str | None:
    """Why torch takes the call of (batch, classes), or ``None``."""
    if not (type(target) is DTensor and (weight is None or type(weight) is DTensor)):
        return "not all tensors are DTensors"
    reason = refusal_of_cross_entropy(input, target, weight, ignore_index, label_smoothing, promotes(input))
    if reason is not None:
        return reason
    if is_probability(target):
        return "the targets are no class indices"
    if sum(_is_by_classes(placement) for placement in input.placements) != 1:
        return "the classes are not spread over one dimension of the mesh"
    for ours, of_target in zip(input.placements, target.placements, strict=True):
        wanted = Replicate() if _is_by_classes(ours) else ours
        if not (wanted == of_target and wanted in (Replicate(), Shard(0))):
            return "the targets are placed otherwise than the rows"
    if weight is None:
        return None
    if weight.requires_grad:
        return "the weight requires a gradient"
    for ours, of_weight in zip(input.placements, weight.placements, strict=True):
        if of_weight != Replicate() and not (of_weight == Shard(0) and _is_by_classes(ours)):
            return "the weights are placed otherwise than the classes"
    return None


def cross_entropy_of_dtensors(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """A DTensor of the type that torch's function gives: replicated, or of unreduced losses placed as the rows."""
    assert isinstance(input, DTensor) and isinstance(target, DTensor)  # refusal() has asked
    assert weight is None or isinstance(weight, DTensor)
    mesh = input.device_mesh
    by_classes = next(i for i, placement in enumerate(input.placements) if _is_by_classes(placement))
    by_rows = [
        i for i, placement in enumerate(input.placements) if not _is_by_classes(placement) and placement.is_shard()
    ]
    logits, indices = input.to_local(), target.to_local()
    _, (_, vocab_start) = compute_local_shape_and_global_offset(input.shape, mesh, input.placements)
    local_weight = None if weight is None else weight.to_local()
    if weight is not None and weight.placements[by_classes] == Replicate():
        local_weight = weight.to_local()[vocab_start : vocab_start + logits.size(1)]
    options = LossOptions(
        group_name=mesh.get_group(by_classes).group_name,
        vocab_start=vocab_start,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",  # here: the other rows are elsewhere
        logit_scale=1.0,
        softcap=None,
        lse_square_scale=0.0,
    )
    dtype = loss_dtype(input, target, promotes(input))
    of_rows = partial(cross_entropy, logits, indices, local_weight, None, *options)
    if reduction == "none":
        placements = [Shard(0) if i in by_rows else Replicate() for i in range(mesh.ndim)]
        losses = of_rows()[0].to(dtype)
        return DTensor.from_local(losses, mesh, placements, run_check=False, shape=target.shape, stride=(1,))

    def sum_and_denominator() -> tuple[Tensor, Tensor]:
        losses, *kept = of_rows()
        return losses.sum(), Kept(*kept).target_weight.sum()

    # An error of some rows is raised by all ranks that have them: the ranks that have others hear of it here.
    total, denominator = sum_over_rows(sum_and_denominator, mesh, by_rows, accumulation_dtype(input.dtype))
    loss = total / denominator if reduction == "mean" else total
    return DTensor.from_local(loss.to(dtype), mesh, [Replicate()] * mesh.ndim, run_check=False)


def _is_by_classes(placement: Placement) -> bool:
    return bool(placement == Shard(1))
