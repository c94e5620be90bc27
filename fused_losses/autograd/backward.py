"""What the backward of every loss shares.

Note [Gradient in the forward]
With a scalar loss the gradient is computed in the forward, where the input is in the cache, for the ``grad_output``
that is expected (Note [Expected grad_output]). It hangs on the context, not among the saved tensors, so that nothing
else that is saved needs to be intact for it; the backward drops it unless the graph is kept, and a second backward then
finds the freed saved tensors and raises torch's usual error. Where the graph is kept a copy is handed out, because the
caller may write into what it gets. For another ``grad_output`` the gradient is computed anew: the same bits, rounded
once. Only where the input was modified since, which torch allows here, is the one at hand multiplied; in float16 it may
have lost too much to be (65536 is the scale of a loss there), and torch's error of a modified tensor is raised.

Note [Gradient on a device]
On a GPU the host does not know ``grad_output`` and must not wait for it: the device computes the gradient anew in its
place unless ``grad_output`` is the expected one, which is that of an earlier step (Note [Told by the device]). It waits
in one case alone, to know whether to raise: that of float16 and a modified input.

Note [Watched backwards]
A backward that is itself differentiated (``create_graph``, forward mode), transformed, batched, traced or watched by a
mode takes the differentiable operator, which sees the saved tensors as they hang in the graph and runs nobody's hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..operators.class_axis import accumulation_dtype
from ..operators.registration import MEAN, SUM, is_batched
from ..routing import is_watched
from . import placement
from .scale_history import FOR_ONE, DeviceExpectation

_LOST_IN_SCALING = frozenset({torch.float16})  # gradients of this type have subnormal numbers where a loss is scaled

keeps_graph: Callable[[], bool] = torch._C._autograd._get_current_graph_task_keep_graph


def is_plain(ctx: Any, grad_output: Tensor) -> bool:
    """Whether this backward may take shortcuts: nobody differentiates it, and only the first input wants a gradient."""
    return not (
        is_watched()
        or torch.is_grad_enabled()
        or any(ctx.needs_input_grad[1:])
        or type(grad_output) is not Tensor
        or grad_output.layout is not torch.strided
        or is_batched(grad_output)
    )


def reduction_for_one(reduction: int) -> int:
    """The reduction of which :func:`times_batch` takes the gradient: of a mean in 16 bits nothing might be left."""
    return SUM if reduction == MEAN else reduction


def unrounded_for_one(tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
    """The tensors of which :func:`times_batch` takes the gradient: of a type in which it may not be multiplied, as
    float32."""
    return [
        tensor.to(accumulation_dtype(tensor.dtype))
        if tensor is not None and tensor.dtype in _LOST_IN_SCALING
        else tensor
        for tensor in tensors
    ]


def times_batch(
    gradient_for_one: Tensor,
    grad_output: Tensor,
    scale: Tensor | float | None,
    class_dim: int | None,
    dtype: torch.dtype,
) -> Tensor:
    """The gradients for a batch of ``grad_output``: linear in it, they are the gradient for 1, multiplied.

    Args:
        gradient_for_one: of :func:`reduction_for_one` and :func:`unrounded_for_one`.
        grad_output: what ``is_grads_batched=True`` made of the batch.
        scale: of a mean: what each loss counts in it.
        class_dim: the axis that the losses, unreduced or with a ``scale`` each, lack.
        dtype: of the gradients.
    """
    factor = grad_output.to(accumulation_dtype(dtype))
    stay_zero = gradient_for_one == 0
    if isinstance(scale, Tensor) and class_dim is not None:  # of a mean over no weight what counts is 0 / 0
        stay_zero &= scale.isfinite().unsqueeze(class_dim)
    if scale is not None:
        factor = factor * scale
    if class_dim is not None:
        factor = factor.unsqueeze(class_dim)
    return multiplied(gradient_for_one, factor, stay_zero).to(dtype)


def dense(grad_output: Tensor) -> Tensor:
    return grad_output if grad_output.layout is torch.strided else grad_output.to_dense()


def take_gradient(ctx: Any, grad_output: Tensor, rescale: Callable[..., None]) -> Tensor | None:
    """The gradient that the forward computed, if it is the one for ``grad_output``; nothing where it must be computed.

    Args:
        ctx: the Function's context, with the gradient or ``None``.
        grad_output: of the scalar loss.
        rescale: ``rescale(grad_output, gradient, expected, *saved_tensors)`` computes the gradient anew in its place;
            see Note [Gradient on a device].
    """
    gradient: Tensor | None = ctx.gradient
    if gradient is None and ctx.expectation is FOR_ONE:
        return None  # and nobody wants to know grad_output
    if not placement.is_on_host(grad_output):
        if isinstance(ctx.expectation, DeviceExpectation):
            ctx.expectation.observe_on_device(grad_output)
        return None if gradient is None else _take_on_device(ctx, gradient, grad_output, rescale)
    scale = grad_output.item()
    ctx.expectation.observe(scale)
    if gradient is None:
        return None
    if scale != ctx.expected:
        if _saved_intact(ctx) is not None or gradient.dtype in _LOST_IN_SCALING:
            ctx.gradient = None
            return None
        ctx.expectation.observe_modified_input()
    if not keeps_graph():
        ctx.gradient = None
    elif scale == ctx.expected:
        gradient = gradient.clone()
    return gradient if scale == ctx.expected else multiplied(gradient, scale / ctx.expected)


def _take_on_device(ctx: Any, gradient: Tensor, grad_output: Tensor, rescale: Callable[..., None]) -> Tensor:
    if keeps_graph():
        gradient = gradient.clone()
    else:
        ctx.gradient = None
    saved = _saved_intact(ctx)
    if saved is None and gradient.dtype in _LOST_IN_SCALING and grad_output.item() != ctx.expected:
        saved = ctx.saved_tensors  # raises
    if saved is not None:
        rescale(grad_output, gradient, ctx.expected, *saved)
    else:
        ctx.expectation.observe_modified_input()
        gradient = multiplied(gradient, grad_output.to(accumulation_dtype(gradient.dtype)) / ctx.expected)
    return gradient


def multiplied(gradient: Tensor, factor: Tensor | float, stay_zero: Tensor | None = None) -> Tensor:
    """Rounded once more. What is 0 stays 0, whatever the factor is: of rows that do not count, by default all."""
    stay_zero = gradient == 0 if stay_zero is None else stay_zero
    product = (gradient.to(accumulation_dtype(gradient.dtype)) * factor).to(gradient.dtype)
    return product.masked_fill_(stay_zero, 0)


def _saved_intact(ctx: Any) -> tuple[Tensor | None, ...] | None:
    """The saved tensors; nothing where one of them was modified in place since."""
    try:
        saved: tuple[Tensor | None, ...] = ctx.saved_tensors
    except RuntimeError:
        return None
    return saved
