"""What torch must know of the operators of binary cross-entropy of logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
from .registration import Operator


def composite(
    reduction: int, logits: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None
) -> Tensor:
    """Torch's own binary cross-entropy with the operators' options."""
    return torch_function("binary_cross_entropy_with_logits")(
        logits, target, weight, reduction=("none", "mean", "sum")[reduction], pos_weight=pos_weight
    )


def _second_derivative(
    factor: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None
) -> Tensor:
    r"""``w (1 - y + p y) \sigma(x) \sigma(-x)``; the sigmoid is taken on the side where its complement is exact."""
    second: Tensor = torch.ops.aten.sigmoid_backward(factor, torch.sigmoid(-logits.abs()))
    if pos_weight is not None:
        second = second * (1 - target + pos_weight * target)
    return second if weight is None else second * weight


def _differentiate_loss(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    return differentiate_loss("binary_cross_entropy_with_logits_backward", composite, ctx, grad_output)


def _differentiate_prepared(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
    return differentiate_prepared("binary_cross_entropy_with_logits", composite, ctx, *grad_outputs)


def _differentiate_backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
    backward = "binary_cross_entropy_with_logits_backward"
    return differentiate_backward(backward, composite, _second_derivative, ctx, direction)


def _batch_loss(info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
    return batch_loss("binary_cross_entropy_with_logits", info, in_dims, *arguments)


def _batch_prepared(info: Any, in_dims: Any, *arguments: Any) -> tuple[Any, Any]:
    return batch_prepared("binary_cross_entropy_with_logits", info, in_dims, *arguments)


def _batch_backward(info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
    return batch_backward("binary_cross_entropy_with_logits_backward", info, in_dims, *arguments)


OPERATORS = {
    "binary_cross_entropy_with_logits": Operator(fake=fake_loss, derivative=_differentiate_loss, batch=_batch_loss),
    "binary_cross_entropy_with_logits_forward": Operator(fake=fake_loss, batch=_batch_loss),
    "binary_cross_entropy_with_logits_with_gradient": Operator(fake=fake_with_gradient),
    "binary_cross_entropy_with_logits_prepared": Operator(
        fake=fake_prepared, derivative=_differentiate_prepared, save=save_prepared, batch=_batch_prepared
    ),
    "binary_cross_entropy_with_logits_prepared_backward": Operator(fake=fake_backward),
    "binary_cross_entropy_with_logits_backward": Operator(
        fake=fake_backward, derivative=_differentiate_backward, batch=_batch_backward
    ),
}
