"""What torch must know of the operators of the focal loss: Note [Focal loss] in ``csrc/core``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..torch_losses import torch_function
from .batching import batch_first, reduce_stack, spread_stack
from .class_axis import accumulation_dtype
from .elementwise import differentiate_backward, differentiate_loss, fake_backward, fake_loss
from .elementwise import refusal as refusal_of_elementwise
from .registration import MEAN, NONE, Operator, call

# Options are alpha (-1: none), gamma and the reduction.


def refusal(logits: Tensor, target: Tensor) -> str | None:
    """Why the kernels do not compute this loss, or ``None``."""
    return refusal_of_elementwise(logits, target.dtype, target)


def composite(alpha: float, gamma: float, reduction: int, logits: Tensor, target: Tensor) -> Tensor:
    """The loss by torch's own operators, computed in the type of computation."""
    dtype = accumulation_dtype(torch.promote_types(logits.dtype, target.dtype))
    x, y = logits.to(dtype), target.to(dtype)
    losses = torch_function("binary_cross_entropy_with_logits")(x, y, reduction="none")
    if gamma:
        certainty_left = torch.sigmoid(x) * (1 - y) + torch.sigmoid(-x) * y
        # A power below 1 has no derivative at 0, where nothing is left of the loss.
        losses = losses * certainty_left.clamp(min=torch.finfo(dtype).tiny) ** gamma
    if alpha >= 0:
        losses = losses * (alpha * y + (1 - alpha) * (1 - y))
    if reduction != NONE:
        losses = losses.mean() if reduction == MEAN else losses.sum()
    return losses.to(target.dtype)


def _second_derivative(factor: Tensor, x: Tensor, y: Tensor, alpha: float, gamma: float) -> Tensor:
    r"""Of ``a q^\gamma b`` with the binary cross-entropy ``b`` and ``q = \sigma(x) (1 - y) + \sigma(-x) y``, by
    ``r = q' / q``: ``a q^\gamma (\gamma (\gamma - 1) r^2 b + \gamma q'' / q b + 2 \gamma r b' + b'')``. Nothing is the
    complement of something near 1."""
    tiny = torch.finfo(x.dtype).tiny
    of_positive, of_negative = torch.sigmoid(x).clamp(min=tiny), torch.sigmoid(-x).clamp(min=tiny)
    slope = of_positive * (1 - y) - of_negative * y
    second = of_positive * of_negative
    if gamma:
        log_sigmoid = torch.nn.functional.logsigmoid
        loss = -y * log_sigmoid(x) - (1 - y) * log_sigmoid(-x)
        left = of_positive * (1 - y) + of_negative * y
        ratio = (1 - 2 * y) / (y / of_positive + (1 - y) / of_negative)
        bend = (gamma - 1) * ratio * ratio + (of_negative - of_positive) * ratio
        second = left**gamma * (gamma * (bend * loss + 2 * ratio * slope) + second)
    if alpha >= 0:
        second = second * (alpha * y + (1 - alpha) * (1 - y))
    return factor * second


def _batch(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
    logits, target = (batch_first(t, info, dim) for t, dim in zip(arguments[:2], in_dims[:2], strict=True))
    alpha, gamma, reduction = arguments[2:]
    if reduction == NONE:
        return call("sigmoid_focal_loss", logits, target, alpha, gamma, NONE), 0
    exact_target = target.float() if target.dtype.itemsize == 2 else target  # not rounded before they are added
    losses = call("sigmoid_focal_loss", logits, exact_target, alpha, gamma, NONE)
    return reduce_stack(losses, logits[0].numel() if reduction == MEAN else None, target.dtype), 0


def _batch_backward(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
    grad_output, logits, target = (batch_first(t, info, dim) for t, dim in zip(arguments[:3], in_dims[:3], strict=True))
    alpha, gamma, reduction = arguments[3:]
    if reduction != NONE:
        denominator = logits[0].numel() if reduction == MEAN else None
        grad_output = spread_stack(grad_output.to(accumulation_dtype(logits.dtype)), denominator, logits.shape)
    arguments = (grad_output.contiguous(), logits, target, alpha, gamma, NONE)
    return call("sigmoid_focal_loss_backward", *arguments), 0


OPERATORS = {
    "sigmoid_focal_loss": Operator(
        fake=fake_loss, derivative=partial(differentiate_loss, "sigmoid_focal_loss_backward", composite), batch=_batch
    ),
    "sigmoid_focal_loss_backward": Operator(
        fake=fake_backward,
        derivative=partial(differentiate_backward, "sigmoid_focal_loss_backward", composite, _second_derivative),
        batch=_batch_backward,
        num_linear=1,
    ),
}
