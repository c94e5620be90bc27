"""Cross-entropy with what torch's lacks: terms of a row (scale, softcap, z-loss, focal loss) and weights of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from .autograd.cross_entropy import fused_cross_entropy
from .operators.class_axis import (
    INDEX_DTYPES,
    class_dim,
    is_class,
    is_type_of_class_weight,
    mean_denominator,
    position_sizes,
)
from .operators.cross_entropy import composite
from .operators.cross_entropy import refusal as refusal_of_cross_entropy
from .operators.registration import MEAN, NONE
from .operators.row_terms import RowTerms, check_token_weight
from .operators.row_terms import refusal as refusal_of_terms
from .route_log import note
from .routing import is_differentiated, kernel_route, promotes, reason_for_torch, without_waiting_wrapper

__all__ = ["check_beyond_torch", "cross_entropy_beyond_torch", "promotes_losses", "reason_for_composite"]


def reason_for_composite(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    promote: bool,
    terms: RowTerms,
) -> str | None:
    """Why torch's own operators compute these terms, or ``None`` where a kernel does."""
    return (
        reason_for_torch(input, target, weight)
        or refusal_of_cross_entropy(input, target, weight, ignore_index, label_smoothing, promote)
        or refusal_of_terms(input, terms)
    )


def cross_entropy_beyond_torch(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    terms: RowTerms,
    token_weight: Tensor | None,
    inplace_gradient: bool,
) -> Tensor:
    """See :func:`fused_losses.functional.cross_entropy`."""
    check_beyond_torch(input, target, weight, label_smoothing, terms, token_weight)
    wrapper, input = input, without_waiting_wrapper(input)
    inplace_gradient = inplace_gradient and input is wrapper
    options = (ignore_index, label_smoothing)
    if token_weight is None:
        return _with_terms(input, target, weight, reduction, *options, promotes(input), terms, inplace_gradient)
    counted = target
    if not (target.is_floating_point() or is_differentiated(token_weight)):
        # What counts for nothing is left out, unless it is no class: that is an error in any case.
        is_left_out = (token_weight == 0) & is_class(target, input.shape[class_dim(input.shape)])
        counted = torch.where(is_left_out, ignore_index, target.long())
    losses = _with_terms(input, counted, weight, NONE, *options, True, terms, inplace_gradient)
    mixes_types = target.is_floating_point() and target.dtype != input.dtype
    dtype = losses.dtype if promotes(input) or mixes_types else input.dtype
    losses = losses * token_weight
    if reduction != NONE:
        losses = losses.sum()
    if reduction == MEAN:
        losses = losses / mean_denominator(target, weight, ignore_index, label_smoothing, input)
    return losses.to(dtype)


def promotes_losses(input: Tensor, token_weight: Tensor | None) -> bool:
    """Unreduced losses are not rounded before they are weighted."""
    return token_weight is not None or promotes(input)


def check_beyond_torch(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    terms: RowTerms,
    token_weight: Tensor | None,
) -> None:
    """Raises where the tensors and options do not go together, of which torch's function knows nothing."""
    if not (isinstance(input, Tensor) and isinstance(target, Tensor)):
        raise TypeError("cross_entropy takes tensors of logits and targets")
    if not input.is_floating_point():
        raise NotImplementedError(f"cross_entropy is not implemented for logits of {input.dtype}")
    if terms.focal_gamma and (label_smoothing or target.is_floating_point()):
        raise ValueError("focal_gamma is for class indices without label smoothing")
    if not target.is_floating_point():
        if target.dtype not in INDEX_DTYPES:
            raise RuntimeError(f"expected class indices of type int64, int32 or uint8, got {target.dtype}")
        if weight is not None and not is_type_of_class_weight(input, weight, promotes_losses(input, token_weight)):
            raise RuntimeError(f"expected class weights of type {input.dtype}, got {weight.dtype}")
    if token_weight is None:
        return
    check_token_weight(token_weight, position_sizes(input.shape))
    if target.is_floating_point() or is_differentiated(token_weight):
        return
    if target.shape != token_weight.shape:
        raise ValueError(f"Expected target of shape {list(token_weight.shape)}, got {list(target.shape)}")


def _with_terms(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    promote: bool,
    terms: RowTerms,
    inplace_gradient: bool,
) -> Tensor:
    reason = reason_for_composite(input, target, weight, ignore_index, label_smoothing, promote, terms)
    options = (reduction, ignore_index, label_smoothing, promote)
    if reason is None:
        route = kernel_route()
        note("cross_entropy", route)
        return fused_cross_entropy(route, input, target, weight, *options, inplace_gradient, terms)
    note("cross_entropy", f"torch: {reason}")
    return composite((*options, *terms), input, target, weight)
