"""Which way a call of a loss that torch has goes, and why: what each function asks first, and what ``explain`` says.

Everything is asked before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .beyond_torch import check_beyond_torch, promotes_losses, reason_for_composite
from .operators.binary_cross_entropy import refusal as refusal_of_binary_cross_entropy
from .operators.cross_entropy import refusal as refusal_of_cross_entropy
from .operators.elementwise import autocast_dtype
from .operators.elementwise import refusal as refusal_of_elementwise
from .operators.nll_loss import refusal as refusal_of_nll_loss
from .operators.registration import refusal_of_reduction
from .operators.row_terms import RowTerms, row_terms
from .route_log import note
from .routing import (
    OVERRIDDEN,
    has_overrides,
    is_dtensor,
    kernel_route,
    promotes,
    reason_for_torch,
    without_waiting_wrapper,
)

if TYPE_CHECKING:
    from .distributed.dtensor import Way

__all__ = [
    "against_binary_cross_entropy",
    "against_binary_cross_entropy_with_logits",
    "against_cross_entropy",
    "against_nll_loss",
    "loss_of_dtensors",
    "way_of_call",
]

_TERMS = {"logit_scale": 1.0, "softcap": None, "lse_square_scale": 0.0, "focal_gamma": 0.0}

# against_...: why torch's own function takes the call, or None.


def against_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> str | None:
    return (
        reason_for_torch(input, target, weight)
        or refusal_of_reduction(reduction)
        or refusal_of_cross_entropy(input, target, weight, ignore_index, label_smoothing, promotes(input))
    )


def against_nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore_index: int
) -> str | None:
    return (
        reason_for_torch(input, target, weight)
        or refusal_of_reduction(reduction)
        or refusal_of_nll_loss(input, target, weight, ignore_index, promotes(input))
    )


def against_binary_cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> str | None:
    return (
        reason_for_torch(input, target, weight)
        or refusal_of_reduction(reduction)
        or refusal_of_binary_cross_entropy(input, autocast_dtype(target), target, weight)
    )


def against_binary_cross_entropy_with_logits(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, pos_weight: Tensor | None
) -> str | None:
    return (
        reason_for_torch(input, target, weight, pos_weight)
        or refusal_of_reduction(reduction)
        or refusal_of_elementwise(input, autocast_dtype(target), target, weight, pos_weight)
    )


def way_of_call(name: str, **arguments: Any) -> tuple[str | None, str]:
    """Why torch's own function takes this call, or ``None``, and the name of the kernels' way.

    All arguments are given but the deprecated ones. Raises what the call raises of options beyond torch's.
    """
    route = kernel_route()
    tensors = {key: arguments[key] for key in ("input", "target", "weight", "pos_weight") if key in arguments}
    if has_overrides(*tensors.values()):
        return OVERRIDDEN, route
    arguments["input"] = without_waiting_wrapper(arguments["input"])
    terms = row_terms(*(arguments.pop(key, default) for key, default in _TERMS.items()))
    token_weight = arguments.pop("token_weight", None)
    if token_weight is not None or terms != RowTerms():
        return _against_beyond_torch(**arguments, terms=terms, token_weight=token_weight), route
    if is_dtensor(arguments["input"]):
        input, target, *weights = tensors.values()
        options = tuple(arguments[key] for key in ("ignore_index", "label_smoothing") if key in arguments)
        way = _way_of_dtensors(name, input, target, tuple(weights), arguments["reduction"], options)
        return (way.name if way.compute is None else None), way.name
    against: dict[str, Callable[..., str | None]] = {
        "cross_entropy": against_cross_entropy,
        "nll_loss": against_nll_loss,
        "binary_cross_entropy": against_binary_cross_entropy,
        "binary_cross_entropy_with_logits": against_binary_cross_entropy_with_logits,
    }
    return against[name](**arguments), route


def _against_beyond_torch(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    terms: RowTerms,
    token_weight: Tensor | None,
) -> str | None:
    if (refusal := refusal_of_reduction(reduction)) is not None:
        raise ValueError(refusal)
    check_beyond_torch(input, target, weight, label_smoothing, terms, token_weight)
    promote = promotes_losses(input, token_weight)
    return reason_for_composite(input, target, weight, ignore_index, label_smoothing, promote, terms)


def loss_of_dtensors(
    name: str,
    input: Tensor,
    target: Tensor,
    weights: tuple[Tensor | None, ...],
    reduction: str,
    options: tuple[Any, ...] = (),
) -> tuple[Tensor | None, str]:
    """The loss of a DTensor, or why torch's own takes the call."""
    way = _way_of_dtensors(name, input, target, weights, reduction, options)
    if way.compute is None:
        return None, way.name
    note(name, way.name)
    return way.compute(), way.name


def _way_of_dtensors(*call: Any) -> Way:
    from .distributed.dtensor import way_of_dtensors  # here, since torch.distributed.tensor takes long to import

    return way_of_dtensors(*call)
