"""Gradients that the kernels do not compute, for targets and weights: torch's own formula, differentiated by torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def other_gradients(
    ctx: Any, loss_function: Callable[..., Tensor], tensors: Sequence[Tensor | None], grad_output: Tensor
) -> list[Tensor | None]:
    """The gradients of ``loss_function(*tensors)`` for all tensors but the first that ``ctx`` needs them of.

    Note [Hooks of saved tensors]
    ``torch.autograd.grad`` with respect to a tensor runs the hooks that hang on it, which the backward around this call
    is about to run itself. So the formula is given aliases, which carry no hook of anybody's.
    """
    needed = [False] + [
        tensor is not None and needs for tensor, needs in zip(tensors[1:], ctx.needs_input_grad[1:], strict=False)
    ]
    if not any(needed):
        return [None] * (len(tensors) - 1)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        wanted = [alias for alias, needs in zip(aliases, needed, strict=True) if needs]
        loss = loss_function(*aliases)
        gradients = iter(
            torch.autograd.grad(loss, wanted, grad_output, create_graph=create_graph)  # type: ignore[arg-type]
        )
    return [next(gradients) if needs else None for needs in needed[1:]]


def second_gradients(
    ctx: Any, loss_function: Callable[..., Tensor], arguments: Sequence[Tensor | None], direction: Tensor
) -> list[Tensor | None]:
    """The derivatives, in a direction, of the gradient of ``loss_function`` for its first tensor.

    Args:
        ctx: of an operator whose leading arguments are these.
        loss_function: of all arguments but the first.
        arguments: the gradient of the loss, then the loss's tensors.
        direction: of the shape of the first of them.
    """
    needed = [tensor is not None and needs for tensor, needs in zip(arguments, ctx.needs_input_grad, strict=False)]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [None if tensor is None else tensor.view_as(tensor) for tensor in arguments]
        grad_output, input, *others = aliases
        # A transform of its own, since at this level the input may need no gradient.
        pull_back = torch.func.vjp(lambda x: loss_function(x, *others), input)[1]
        (gradient,) = pull_back(grad_output)
        wanted = [alias for alias, needs in zip(aliases, needed, strict=True) if needs]
        seconds = iter(
            torch.autograd.grad(gradient, wanted, direction, create_graph=create_graph, allow_unused=True)  # type: ignore[arg-type]
        )
    return [next(seconds) if needs else None for needs in needed]
