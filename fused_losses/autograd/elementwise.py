"""What the Functions of both binary losses share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..operators.class_axis import accumulation_dtype
from ..operators.composite import other_gradients
from ..operators.registration import call
from .backward import is_batched


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
    """The gradient for 1, in the type that it is computed in, times the batch."""
    input = tensors[0]
    assert input is not None
    dtype = accumulation_dtype(input.dtype)
    ones = torch.ones(grad_output.shape, dtype=dtype, device=input.device)
    exact = (None if tensor is None else tensor.to(dtype) for tensor in tensors)
    gradient: Tensor = call(f"{name}_backward", ones, *exact, reduction)
    return (gradient * grad_output).to(input.dtype)
