"""What torch must know of the operators of binary cross-entropy of probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from ..routing import is_autocast, promotes
from ..torch_losses import torch_function
from .elementwise import operators_of
from .elementwise import refusal as refusal_of_elementwise
from .registration import REDUCTION_NAMES


def refusal(input: Tensor, target_dtype: torch.dtype, target: Tensor, weight: Tensor | None) -> str | None:
    """Why the kernels do not compute this loss, or ``None``."""
    if not input.is_cpu and is_autocast(input):
        return "torch refuses losses of probabilities under autocast on this device"
    if target_dtype != input.dtype and not promotes(input):
        return "without autocast, input and target must have one type"
    return refusal_of_elementwise(input, target_dtype, target, weight)


def composite(reduction: int, input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Torch's own binary cross-entropy with the operators' options."""
    if target.dtype != input.dtype:
        input = input.to(target.dtype)
    return torch_function("binary_cross_entropy")(input, target, weight, reduction=REDUCTION_NAMES[reduction])


def _second_derivative(factor: Tensor, input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """``w (x^2 - 2 x y + y) / (x (1 - x))^2``, with 1e-12 added to both factors, as torch has it."""
    numerator = input * input - 2 * input * target + target
    second = factor * numerator / ((input + 1e-12).square() * (1 - input + 1e-12).square())
    return second if weight is None else second * weight


OPERATORS = operators_of("binary_cross_entropy", composite, _second_derivative)
