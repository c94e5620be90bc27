"""Gradients that the kernels do not compute, for targets and weights: torch's own formula, differentiated by torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..routing import are_transforms_active

_ResultT = TypeVar("_ResultT", Tensor, tuple[Tensor, ...])


def pulled_back(
    function: Callable[..., _ResultT], tensors: Sequence[Tensor | None], needed: Sequence[bool], grad_output: _ResultT
) -> list[Tensor | None]:
    """The gradients of ``function(*tensors)``, a tensor or several, for the tensors that need one.

    Note [Hooks of saved tensors]
    ``torch.autograd.grad`` with respect to a tensor runs the hooks that hang on it, which the backward around this call
    is about to run itself. So the formula is given aliases, which carry no hook of anybody's.

    Note [Graphs of transforms]
    What a transform has saved may be a stack of a vmap around it, or of a level that is no more: jacrev pulls back when
    its level is left. Of such tensors no graph is recorded here, and a transform of its own differentiates the formula.
    Elsewhere ``torch.autograd.grad`` does, which costs less and serves batches of the old kind; but not where Dynamo
    traces a backward (compiled autograd), which breaks at it, and may then find no way from the result to the aliases.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        wanted = [alias for alias, needs in zip(aliases, needed, strict=True) if alias is not None and needs]
        if has_graph := _may_record_graph() and all(alias.requires_grad for alias in wanted):
            result = function(*aliases)
            gradients = torch.autograd.grad(result, wanted, grad_output, create_graph=create_graph, allow_unused=True)
    if not has_graph:

        def of_wanted(*values: Tensor) -> _ResultT:
            rest = iter(values)
            return function(*(next(rest) if needs else alias for alias, needs in zip(aliases, needed, strict=True)))

        gradients = torch.func.vjp(of_wanted, *wanted)[1](grad_output)
    found = iter(gradients)
    return [next(found) if needs else None for needs in needed]


def _may_record_graph() -> bool:
    """See Note [Graphs of transforms]."""
    return not (are_transforms_active() or torch.compiler.is_dynamo_compiling())


def other_gradients(
    ctx: Any, loss_function: Callable[..., Tensor], tensors: Sequence[Tensor | None], grad_output: Tensor
) -> list[Tensor | None]:
    """The gradients of ``loss_function(*tensors)`` for all tensors but the first that ``ctx`` needs them of."""
    needed = needed_gradients(ctx, tensors)
    needed[0] = False
    return pulled_back(loss_function, tensors, needed, grad_output)[1:] if any(needed) else [None] * (len(tensors) - 1)


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

    def gradient(grad_output: Tensor, input: Tensor, *others: Tensor | None) -> Tensor:
        return differentiable_gradient(lambda x: loss_function(x, *others), input, grad_output)

    return pulled_back(gradient, arguments, needed_gradients(ctx, arguments), direction)


def differentiable_gradient(function: Callable[[Tensor], Any], input: Tensor, grad_output: Any) -> Tensor:
    """The gradient of ``function(input)``, which may be differentiated itself.

    A transform would refuse to run where saved tensors pass through hooks: outside of transforms there is a graph.

    Args:
        function: gives a tensor or a tuple of them.
        input: carries no hook of anybody's. At this level it may need no gradient.
        grad_output: what ``function`` gives is multiplied by.
    """
    gradient: Tensor
    if are_transforms_active():
        gradient = torch.func.vjp(function, input)[1](grad_output)[0]
        return gradient
    with torch.enable_grad():
        x = input if input.requires_grad else input.detach().requires_grad_()
        gradient = torch.autograd.grad(function(x), x, grad_output, create_graph=True)[0]
    return gradient


def needed_gradients(ctx: Any, tensors: Sequence[Tensor | None]) -> list[bool]:
    """Of which of an operator's leading tensors its derivative needs gradients."""
    return [tensor is not None and needs for tensor, needs in zip(tensors, ctx.needs_input_grad, strict=False)]
