"""What the backward of every loss shares.

Note [Gradient in the forward]
With a scalar loss the gradient for ``grad_output = 1`` is computed in the forward, where the input is in the cache, and
the backward only scales it. It hangs on the context, not among the saved tensors, so that nothing else that is saved
needs to be intact for it; the backward drops it unless the graph is kept, and a second backward then finds the freed
saved tensors and raises torch's usual error. Where the graph is kept a copy is handed out, because the caller may write
into what it gets.

Note [Gradient on a device]
On a GPU the host does not know ``grad_output`` and must not wait for it: the device scales the gradient, and leaves it
alone where ``grad_output`` is 1. A 16-bit gradient is computed anew from the logits instead and is rounded once.

On either side a gradient that should be computed anew is scaled after all where the logits were modified since, which
torch allows here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from .eager import is_batched, runs_eagerly

keeps_graph: Callable[[], bool] = torch._C._autograd._get_current_graph_task_keep_graph


def needs_composite(ctx: Any, grad_output: Tensor) -> bool:
    """Whether this backward must itself be differentiable or transformable, or serve more inputs than the first."""
    return (
        torch.is_grad_enabled()
        or any(ctx.needs_input_grad[1:])
        or grad_output.layout is not torch.strided
        or is_batched(grad_output)
        or not runs_eagerly()
    )


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


def is_on_host(tensor: Tensor) -> bool:
    """Whether the host can look at the tensor's values without waiting for a device."""
    return tensor.is_cpu


def take_gradient(ctx: Any, grad_output: Tensor, rescale: Callable[..., None]) -> Tensor | None:
    """The gradient that the forward computed, times ``grad_output``; nothing where it must be computed anew.

    Args:
        ctx: the Function's context, with the gradient or ``None``.
        grad_output: of the scalar loss.
        rescale: ``rescale(grad_output, gradient, *saved_tensors)`` computes the gradient anew in its place; see Note
            [Gradient on a device].
    """
    gradient: Tensor | None = ctx.gradient
    if gradient is None:
        return None
    if not is_on_host(gradient):
        if keeps_graph():
            gradient = gradient.clone()
        else:
            ctx.gradient = None
        saved = _saved_intact(ctx) if gradient.dtype.itemsize == 2 else None
        if saved is not None:
            rescale(grad_output, gradient, *saved)
        else:
            _ops.scale_gradient(gradient, grad_output)
        return gradient
    scale = grad_output.item()
    if not _scales_exactly(gradient, scale) and _saved_intact(ctx) is not None:
        ctx.gradient = None
        return None
    if keeps_graph():
        return gradient * scale
    ctx.gradient = None
    return gradient if scale == 1 else gradient.mul_(scale)


def _saved_intact(ctx: Any) -> tuple[Tensor | None, ...] | None:
    """The saved tensors; nothing where one of them was modified in place since."""
    try:
        saved: tuple[Tensor | None, ...] = ctx.saved_tensors
    except RuntimeError:
        return None
    return saved


def _scales_exactly(gradient: Tensor, scale: float) -> bool:
    """Whether a multiplication gives what the kernels would.

    16-bit values must be rounded once: only a power of two may multiply them, and only where none can underflow. An
    infinity makes the zeros of ignored rows NaN.
    """
    if gradient.dtype.itemsize == 2:
        return scale == 1 or (gradient.dtype == torch.bfloat16 and abs(math.frexp(scale)[0]) == 0.5)
    return math.isfinite(scale)
