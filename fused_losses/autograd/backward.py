"""What the backward of every loss shares.

Note [Gradient in the forward]
With a scalar loss the gradient for ``grad_output = 1`` is computed in the forward, where the input is in the cache, and
the backward only scales it. It hangs on the context, not among the saved tensors, so that nothing else that is saved
needs to be intact for it; the backward drops it unless the graph is kept, and a second backward then finds the freed
saved tensors and raises torch's usual error. Where the graph is kept a copy is handed out, because the caller may write
into what it gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .eager import is_batched, runs_eagerly

keeps_graph: Callable[[], bool] = torch._C._autograd._get_current_graph_task_keep_graph


def needs_composite(ctx: Any, grad_output: Tensor) -> bool:
    """Whether this backward must itself be differentiable or transformable, or serve more inputs than the first."""
    return torch.is_grad_enabled() or any(ctx.needs_input_grad[1:]) or is_batched(grad_output) or not runs_eagerly()


def composite_gradients(
    ctx: Any, loss_function: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad_output: Tensor
) -> list[Tensor | None]:
    """The gradients of ``loss_function(*inputs)``, torch's own formula of the loss, one for each input."""
    needs = [tensor is not None and needed for tensor, needed in zip(inputs, ctx.needs_input_grad, strict=False)]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        loss = loss_function(*inputs)
        wanted = [tensor for tensor, needed in zip(inputs, needs, strict=True) if tensor is not None and needed]
        gradients = iter(torch.autograd.grad(loss, wanted, grad_output, create_graph=create_graph))
    return [next(gradients) if needed else None for needed in needs]


def take_gradient(ctx: Any, grad_output: Tensor) -> Tensor | None:
    """The gradient that the forward computed, times ``grad_output``; nothing where it must be computed anew."""
    gradient: Tensor | None = ctx.gradient
    if gradient is None:
        return None
    scale = grad_output.item()
    if gradient.dtype.itemsize == 2 and not _scales_exactly(gradient, scale):
        ctx.gradient = None
        return None
    if keeps_graph():
        return gradient * scale
    ctx.gradient = None
    return gradient if scale == 1 else gradient.mul_(scale)


def _scales_exactly(gradient: Tensor, scale: float) -> bool:
    """16-bit values must be rounded once: only a power of two may multiply them, and only where none can underflow."""
    return scale == 1 or (gradient.dtype == torch.bfloat16 and abs(math.frexp(scale)[0]) == 0.5)
