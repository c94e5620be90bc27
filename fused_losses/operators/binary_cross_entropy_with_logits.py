"""What torch must know of the operators of binary cross-entropy of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from ..torch_losses import torch_function
from .elementwise import operators_of
from .registration import REDUCTION_NAMES


def composite(
    reduction: int, logits: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None
) -> Tensor:
    """Torch's own binary cross-entropy with the operators' options."""
    return torch_function("binary_cross_entropy_with_logits")(
        logits, target, weight, reduction=REDUCTION_NAMES[reduction], pos_weight=pos_weight
    )


def _second_derivative(
    factor: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None
) -> Tensor:
    r"""``w (1 - y + p y) \sigma(x) \sigma(-x)``; the sigmoid is taken on the side where its complement is exact."""
    second: Tensor = torch.ops.aten.sigmoid_backward(factor, torch.sigmoid(-logits.abs()))
    if pos_weight is not None:
        second = second * (1 - target + pos_weight * target)
    return second if weight is None else second * weight


OPERATORS = operators_of("binary_cross_entropy_with_logits", composite, _second_derivative)
