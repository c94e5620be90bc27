"""Which way the loss of a DTensor goes: by its classes, where those are spread over a mesh, or by its rows.

Each way says why it does not take a call, by what all ranks know alike: where one of them went to torch and another to
a kernel, both would wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor, Shard

from ..operators.registration import refusal_of_reduction
from ..route_log import BY_CLASSES, BY_ROWS
from ..routing import are_transforms_active, is_compiling, is_served, reason_of_surroundings, without_waiting_wrapper
from . import dtensor_classes, dtensor_rows

__all__ = ["Way", "way_of_dtensors"]


class Way(NamedTuple):
    """How a call is computed, and the name of this way; without the first the second is why torch takes the call."""

    compute: Callable[[], Tensor] | None
    name: str


def way_of_dtensors(
    name: str,
    input: Tensor,
    target: Tensor,
    weights: tuple[Tensor | None, ...],
    reduction: str,
    options: tuple[Any, ...],
) -> Way:
    """Which way the loss of a DTensor goes.

    Args:
        name: the loss's.
        input: a DTensor.
        target: any tensor.
        weights: those that the loss has.
        reduction: by name.
        options: the loss's other ones, in the order of its arguments.
    """
    assert isinstance(input, DTensor)
    reason = _reason_of_surroundings() or refusal_of_reduction(reduction) or _refusal(input, target, weights)
    if reason is not None:
        return Way(None, reason)
    if name == "cross_entropy" and input.dim() == 2 and any(placement == Shard(1) for placement in input.placements):
        (weight,), (ignore_index, label_smoothing) = weights, options
        if (reason := dtensor_classes.refusal(input, target, weight, ignore_index, label_smoothing)) is not None:
            return Way(None, reason)
        arguments = (input, target, weight, ignore_index, reduction, label_smoothing)
        return Way(partial(dtensor_classes.cross_entropy_of_dtensors, *arguments), BY_CLASSES)
    if (reason := dtensor_rows.refusal(name, input, target, weights, options)) is not None:
        return Way(None, reason)
    return Way(partial(dtensor_rows.loss_of_rows, name, input, target, weights, reduction, options), BY_ROWS)


def _reason_of_surroundings() -> str | None:
    if is_compiling():
        return "a graph cannot hold the call"
    if are_transforms_active():
        return "DTensors under a transform are torch's"
    return reason_of_surroundings()


def _refusal(input: DTensor, target: Tensor | None, weights: tuple[Tensor | None, ...]) -> str | None:
    """What is asked on either way."""
    if target is None:
        return "there is no target"
    if input.device_mesh.get_coordinate() is None:
        return "this rank is not in the mesh"
    with torch.no_grad():
        own_part = without_waiting_wrapper(input.to_local())
    if not is_served(own_part):
        return "there are no kernels for the tensors of the ranks"
    if isinstance(own_part, FakeTensor):
        return "a fake tensor does not say whether a rank has failed"
    if any(type(tensor) is DTensor and tensor.device_mesh != input.device_mesh for tensor in (target, *weights)):
        return "the tensors are on several meshes"
    return None
