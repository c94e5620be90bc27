"""Cross-entropy of DTensors whose classes are spread over a dimension of a mesh, with batches over others or without.

Torch gathers such logits, or inside its ``loss_parallel()`` makes log-probabilities of their size. What is not
described here goes to torch as before.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ..operators.class_axis import FLOAT_DTYPES, INDEX_DTYPES, accumulation_dtype
from .loss import Kept, LossOptions
from .operators import cross_entropy
from .sum_over_rows import sum_over_rows

__all__ = ["cross_entropy_of_dtensors", "refusal"]


def refusal(input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float) -> str | None:
    """Why torch takes the call, or ``None``."""
    if not (type(input) is type(target) is DTensor and (weight is None or type(weight) is DTensor)):
        return "not all tensors are DTensors"
    if input.dim() != 2 or target.dim() != 1 or target.size(0) != input.size(0):
        return "the logits have another shape than batch and classes, or the targets than batch"
    if input.dtype not in FLOAT_DTYPES or target.dtype not in INDEX_DTYPES:
        return "the logits are of another type, or the targets no class indices"
    if reduction not in ("none", "mean", "sum") or not 0.0 <= label_smoothing <= 1.0:
        return "torch says what is wrong"
    if any(tensor.device_mesh != input.device_mesh for tensor in (target, weight) if tensor is not None):
        return "the tensors are on several meshes"
    if sum(_is_by_classes(placement) for placement in input.placements) != 1:
        return "the classes are not spread over one dimension of the mesh"
    for ours, of_target in zip(input.placements, target.placements, strict=True):
        wanted = Replicate() if _is_by_classes(ours) else ours
        if not (wanted == of_target and wanted in (Replicate(), Shard(0))):
            return "the targets are placed otherwise than the rows"
    if weight is None:
        return None
    if weight.shape != input.shape[1:] or weight.requires_grad or not weight.is_floating_point():
        return "there is not one weight per class, or it is differentiated"
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
    """A DTensor of the input's type, as torch's function gives; what rows are spread over stays so, or is a part."""
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
    of_rows = partial(cross_entropy, logits, indices, local_weight, None, *options)
    if reduction == "none":
        placements = [Shard(0) if i in by_rows else Replicate() for i in range(mesh.ndim)]
        losses = of_rows()[0].to(input.dtype)
        return DTensor.from_local(losses, mesh, placements, run_check=False, shape=target.shape, stride=(1,))

    def sum_and_denominator() -> tuple[Tensor, Tensor]:
        losses, *kept = of_rows()
        return losses.sum(), Kept(*kept).target_weight.sum()

    # An error of some rows is raised by all ranks that have them: the ranks that have others hear of it here.
    total, denominator = sum_over_rows(sum_and_denominator, mesh, by_rows, accumulation_dtype(input.dtype))
    loss = total / denominator if reduction == "mean" else total
    return DTensor.from_local(loss.to(input.dtype), mesh, [Replicate()] * mesh.ndim, run_check=False)


def _is_by_classes(placement: Placement) -> bool:
    return bool(placement == Shard(1))
