"""What a row of cross-entropy may have besides its masses: Note [Terms of a row] in ``csrc/core/cross_entropy.h``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..torch_losses import torch_function
from .class_axis import accumulation_dtype, class_dim, is_counted, mean_denominator
from .logit_transform import LogitTransform, refusal_of_scales
from .registration import MEAN, NONE


class RowTerms(NamedTuple):
    """The operators' trailing options; without any of them the operators take their defaults."""

    logit_scale: float = 1.0
    softcap: float = 0.0
    """0: none."""
    lse_square_scale: float = 0.0
    focal_gamma: float = 0.0


def row_terms(logit_scale: float, softcap: float | None, lse_square_scale: float, focal_gamma: float) -> RowTerms:
    """Of a caller's options.

    Raises:
        TypeError: one of them is a tensor, whose gradient would be lost.
        ValueError: one of them is out of range.
    """
    refuse_tensors(logit_scale, softcap, lse_square_scale, focal_gamma)
    # Comparisons, and not math.isfinite, which Dynamo does not trace.
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be positive and finite, not {softcap}")
    if not 0 < abs(logit_scale) < math.inf:
        raise ValueError(f"logit_scale must be finite and not 0, not {logit_scale}")
    if not abs(lse_square_scale) < math.inf:
        raise ValueError(f"lse_square_scale must be finite, not {lse_square_scale}")
    if not 0 <= focal_gamma < math.inf:
        raise ValueError(f"focal_gamma must be finite and not negative, not {focal_gamma}")
    return RowTerms(float(logit_scale), float(softcap or 0.0), float(lse_square_scale), float(focal_gamma))


def refuse_tensors(*options: Any) -> None:
    """Whose gradients would be lost without a word."""
    if any(isinstance(option, Tensor) for option in options):
        raise TypeError("the scales of a loss are numbers: multiply the logits by a tensor that is to be learned")


def check_token_weight(token_weight: Tensor | None, sizes: Sequence[int]) -> None:
    """Whether the weights of tokens are real numbers, one for each loss.

    Raises:
        TypeError: they are no tensor, or of a complex type, of which a real loss would lose a part.
        ValueError: their shape is not that of the losses.
    """
    if token_weight is None:
        return
    if not isinstance(token_weight, Tensor):
        raise TypeError(f"token_weight must be a tensor, not {type(token_weight).__name__}")
    if token_weight.is_complex():
        raise TypeError(f"token_weight must be real, not {token_weight.dtype}")
    if token_weight.shape != tuple(sizes):
        raise ValueError(f"Expected token_weight of shape {list(sizes)}, got {list(token_weight.shape)}")


def has_terms(options: Sequence[float]) -> bool:
    """Whether the operators' trailing options are other than their defaults, which a graph may spell out."""
    if not options:
        return False
    logit_scale, softcap, lse_square_scale, focal_gamma = options  # one by one: Dynamo may hold symbols for them
    return logit_scale != 1 or softcap != 0 or lse_square_scale != 0 or focal_gamma != 0


def refusal(logits: Tensor, terms: RowTerms) -> str | None:
    """Why the kernels do not compute these terms of a row, or ``None``."""
    if not has_terms(terms):
        return None
    return refusal_of_scales(logits, terms.logit_scale, terms.softcap)


def composite_with_terms(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    terms: RowTerms,
) -> Tensor:
    """The loss by torch's own operators, in the type of computation."""
    dtype = accumulation_dtype(logits.dtype)
    by_index = not target.is_floating_point()
    x = LogitTransform(terms.logit_scale, terms.softcap).transformed(logits.to(dtype))
    target = target.long() if by_index else target.to(dtype)
    losses = torch_function("cross_entropy")(
        x,
        target,
        None if class_weight is None else class_weight.to(dtype),
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    if terms.focal_gamma:
        surprise = torch_function("cross_entropy")(x, target, ignore_index=ignore_index, reduction="none")
        # A power below 1 has no derivative at 0, where nothing is left of the loss.
        complement = -torch.expm1(-surprise).clamp(max=-torch.finfo(dtype).tiny)
        losses = losses * complement**terms.focal_gamma
    if terms.lse_square_scale:
        squares = torch.logsumexp(x, class_dim(x.shape)) ** 2 * terms.lse_square_scale
        losses = losses + (torch.where(is_counted(target, ignore_index), squares, 0) if by_index else squares)
    if reduction == NONE:
        return losses
    total = losses.sum()
    if reduction != MEAN:
        return total
    return total / mean_denominator(target, class_weight, ignore_index, label_smoothing, x)
