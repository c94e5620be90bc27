"""Cross-entropy of a linear layer by torch's operators, with all logits: for any derivative, and for graphs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .class_axis import accumulation_dtype, divisor, is_counted, position_sizes, target_weights
from .logit_transform import LogitTransform
from .registration import MEAN, NONE
from .row_terms import RowTerms, composite_with_terms
from .token_statistics import composite as statistics_of_tokens

__all__ = [
    "LinearLossOptions",
    "autocast_is_off",
    "composite",
    "composite_statistics",
    "counting_rows",
    "empty_gradients",
    "linear_logits",
    "mean_denominator",
    "sizes_of_losses",
]


class LinearLossOptions(NamedTuple):
    """What the loss of a linear layer has besides its tensors."""

    num_classes: int
    reduction: int  # 0 (none), 1 (mean) or 2 (sum)
    ignore_index: int
    label_smoothing: float
    logit_scale: float
    softcap: float  # 0: none
    lse_square_scale: float
    loss_dtype: torch.dtype


def autocast_is_off(device_type: str) -> AbstractContextManager[Any]:
    """A block without autocast, which meta tensors have none of: its rules were applied to what it computes with."""
    is_on = device_type != "meta" and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if is_on else nullcontext()


def counting_rows(target: Tensor, ignore_index: int) -> Tensor | None:
    """Which positions count; ``None`` where the target holds probabilities, of which all do."""
    return None if target.is_floating_point() else is_counted(target, ignore_index)


def sizes_of_losses(target: Tensor) -> tuple[int, ...]:
    """Of an unreduced loss: one for each index, or for each row of probabilities."""
    return tuple(position_sizes(target.shape) if target.is_floating_point() else target.shape)


def empty_gradients(
    input: Tensor, weight: Tensor, wanted: Sequence[bool], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Of input, weight and bias, for a fake of an operator: without elements where they are not wanted."""
    sizes = (input.shape, weight.shape, weight.shape[:1])
    return [input.new_empty(of if wants else (0,), dtype=dtype) for of, wants in zip(sizes, wanted, strict=True)]


def mean_denominator(target: Tensor, class_weight: Tensor | None, options: LinearLossOptions) -> Tensor:
    """What the mean divides by, in float64: the class weights of the targets that count, or the number of positions."""
    if target.is_floating_point():
        num_positions = target.numel() // max(1, options.num_classes)
        return torch.full((), num_positions, dtype=torch.float64, device=target.device)
    weights = target_weights(target, class_weight, options.ignore_index, torch.float64).sum()
    return divisor(weights, options.label_smoothing)


def linear_logits(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """All logits. 16-bit ones of the CPU are computed and stay in float32: see Note [Types of the products]."""
    if input.is_cpu and input.dtype == weight.dtype and (bias is None or bias.dtype == input.dtype):
        dtype = accumulation_dtype(input.dtype)
        input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return F.linear(input, weight, bias)


def composite(
    options: LinearLossOptions,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    token_weight: Tensor | None,
) -> Tensor:
    """The loss of ``input`` (N, F) and ``weight`` (C * D, F), differentiable in every tensor of floating point."""
    with autocast_is_off(input.device.type):
        logits = linear_logits(input, weight, bias)
        has_heads = target.dim() > (2 if target.is_floating_point() else 1)
        heads = [weight.shape[0] // options.num_classes] if has_heads else []
        x = logits.view(input.shape[0], options.num_classes, *heads)
        losses = _row_losses(options, x, target, class_weight)
        if token_weight is not None:
            losses = losses * token_weight.to(losses.dtype)
        if options.reduction != NONE:
            losses = losses.sum(dtype=torch.float64)
        if options.reduction == MEAN:
            losses = losses / mean_denominator(target, class_weight, options)
        return losses.to(options.loss_dtype)


def _row_losses(options: LinearLossOptions, logits: Tensor, target: Tensor, class_weight: Tensor | None) -> Tensor:
    counts = counting_rows(target, options.ignore_index)
    if counts is not None:  # what is in an ignored row is nobody's business: no NaN of 0 times infinity
        logits = torch.where(counts.unsqueeze(1), logits, 0)
    terms = RowTerms(options.logit_scale, options.softcap, options.lse_square_scale)
    return composite_with_terms(
        logits, target, class_weight, NONE, options.ignore_index, options.label_smoothing, terms
    )


def composite_statistics(
    options: tuple[float, float, int], input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probability, log-sum-exp, entropy and argmax of each row."""
    with autocast_is_off(input.device.type):
        logits = linear_logits(input, weight, bias)
        with torch.no_grad():
            argmax = LogitTransform(*options[:2]).argmax(logits)
        return (*statistics_of_tokens(options, logits, target), argmax)
