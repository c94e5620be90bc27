"""What the Functions of both binary losses share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..operators.class_axis import accumulation_dtype
from ..operators.composite import other_gradients
from ..operators.registration import MEAN, NONE, call, is_batched
from ..route_log import COMPILED
from .backward import reduction_for_one, times_batch, unrounded_for_one


def watched_loss(name: str, route: str, *arguments: Any) -> Tensor:
    """The differentiable operator; in a compiled graph, of which a backward is likely to follow, with a ticket."""
    if route == COMPILED and arguments[-1] != NONE:
        prepared: Tensor = call(f"{name}_prepared", *arguments)[0]
        return prepared
    loss: Tensor = call(name, *arguments)
    return loss


def watched_gradients(
    name: str, composite: Callable[..., Tensor], ctx: Any, grad_output: Tensor
) -> list[Tensor | None]:
    """See Note [Watched backwards]."""
    ctx.expectation.observe_other_use()
    tensors = ctx.saved_tensors
    if is_batched(grad_output):
        gradient = _batched_gradient(name, grad_output, tensors, ctx.reduction)
    else:
        gradient = call(f"{name}_backward", grad_output, *tensors, ctx.reduction)
    return [gradient, *other_gradients(ctx, partial(composite, ctx.reduction), tensors, grad_output)]


def _batched_gradient(name: str, grad_output: Tensor, tensors: tuple[Tensor | None, ...], reduction: int) -> Tensor:
    input = tensors[0]
    assert input is not None
    ones = torch.ones(grad_output.shape, dtype=accumulation_dtype(input.dtype), device=input.device)
    of_one = call(f"{name}_backward", ones, *unrounded_for_one(tensors), reduction_for_one(reduction))
    return times_batch(of_one, grad_output, 1 / input.numel() if reduction == MEAN else None, None, input.dtype)
