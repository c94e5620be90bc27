"""What torch must know of the operators of binary cross-entropy of probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..routing import is_autocast, promotes
from ..torch_losses import torch_function
from .elementwise import (
    batch_backward,
    batch_loss,
    batch_prepared,
    differentiate_backward,
    differentiate_loss,
    differentiate_prepared,
    fake_backward,
    fake_loss,
    fake_prepared,
    fake_with_gradient,
    save_prepared,
)
from .elementwise import refusal as refusal_of_elementwise
from .registration import Operator


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
    return torch_function("binary_cross_entropy")(input, target, weight, reduction=("none", "mean", "sum")[reduction])


def _second_derivative(factor: Tensor, input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """``w (x^2 - 2 x y + y) / (x (1 - x))^2``, with 1e-12 added to both factors, as torch has it."""
    numerator = input * input - 2 * input * target + target
    second = factor * numerator / ((input + 1e-12).square() * (1 - input + 1e-12).square())
    return second if weight is None else second * weight


def _differentiate_loss(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    return differentiate_loss("binary_cross_entropy_backward", composite, ctx, grad_output)


def _differentiate_prepared(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
    return differentiate_prepared("binary_cross_entropy", composite, ctx, *grad_outputs)


def _differentiate_backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
    backward = "binary_cross_entropy_backward"
    return differentiate_backward(backward, composite, _second_derivative, ctx, direction)


def _batch_loss(info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
    return batch_loss("binary_cross_entropy", info, in_dims, *arguments)


def _batch_prepared(info: Any, in_dims: Any, *arguments: Any) -> tuple[Any, Any]:
    return batch_prepared("binary_cross_entropy", info, in_dims, *arguments)


def _batch_backward(info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
    return batch_backward("binary_cross_entropy_backward", info, in_dims, *arguments)


OPERATORS = {
    "binary_cross_entropy": Operator(fake=fake_loss, derivative=_differentiate_loss, batch=_batch_loss),
    "binary_cross_entropy_forward": Operator(fake=fake_loss, batch=_batch_loss),
    "binary_cross_entropy_with_gradient": Operator(fake=fake_with_gradient),
    "binary_cross_entropy_prepared": Operator(
        fake=fake_prepared, derivative=_differentiate_prepared, save=save_prepared, batch=_batch_prepared
    ),
    "binary_cross_entropy_prepared_backward": Operator(fake=fake_backward),
    "binary_cross_entropy_backward": Operator(
        fake=fake_backward, derivative=_differentiate_backward, batch=_batch_backward
    ),
}
