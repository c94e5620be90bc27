"""How an operator is described to torch, once for every way in which torch may meet it.

Note [Two registrations]
:func:`torch.library.register_autograd` serves dispatch modes, torch.compile and torch.export, but not nested transforms
of :mod:`torch.func`, which want a ``torch.autograd.Function`` with ``setup_context`` and ``vmap``. Both are made of one
description. What a derivative or a batching rule computes goes through :func:`call`, which takes the one that the place
wants; in plain autograd, where both serve, the Function: torch.library's own takes a tenth of a millisecond a call. The
Function alone has a forward-mode derivative, and only of what is linear: the losses themselves are torch's in forward
mode, but a backward may meet the tangent of its ``grad_output``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from .. import _ops
from ..routing import has_dispatch_modes, is_compiling, is_under_transform

__all__ = [
    "MEAN",
    "NONE",
    "REDUCTIONS",
    "REDUCTION_NAMES",
    "SUM",
    "Operator",
    "apply_outside_transforms",
    "below_autograd",
    "call",
    "is_batched",
    "refusal_of_reduction",
    "register",
]

# The operators' numbers of the reductions, as torch.nn._reduction has them.
NONE = 0
MEAN = 1
SUM = 2
REDUCTIONS = {"none": NONE, "mean": MEAN, "sum": SUM}
REDUCTION_NAMES = tuple(REDUCTIONS)  # by number


def refusal_of_reduction(reduction: Any) -> str | None:
    """Why it is no reduction, or ``None``."""
    known = isinstance(reduction, str) and reduction in REDUCTIONS
    return None if known else "the reduction is none of 'none', 'mean' and 'sum'"


below_autograd = torch._C._AutoDispatchBelowAutograd


def _save_arguments(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors = _leading_tensors(inputs)
    ctx.save_for_backward(*tensors)
    ctx.options = inputs[len(tensors) :]


def _leading_tensors(inputs: Sequence[Any]) -> list[Tensor | None]:
    tensors: list[Tensor | None] = []
    for value in inputs:
        if value is not None and not isinstance(value, Tensor):
            break
        tensors.append(value)
    return tensors


@dataclass(frozen=True)
class Operator:
    """What torch must know of an operator besides its kernels.

    Args:
        fake: its outputs without their values.
        derivative: ``derivative(ctx, *grad_outputs)``, the gradient of each argument. It asks for ``ctx.saved_tensors``
            once: a checkpoint unpacks them no second time.
        save: ``save(ctx, inputs, output)``, what the derivative finds on ``ctx``; by default the tensors among the
            arguments, which come first, as ``ctx.saved_tensors``, and the others as ``ctx.options``.
        batch: ``batch(info, in_dims, *arguments)``, the rule of :func:`torch.library.register_vmap`.
        num_linear: the number of leading tensors that the operator is linear in.
    """

    fake: Callable[..., Any]
    derivative: Callable[..., tuple[Tensor | None, ...]] | None = None
    save: Callable[[Any, tuple[Any, ...], Any], None] = _save_arguments
    batch: Callable[..., tuple[Any, Any]] | None = None
    num_linear: int = 0


_place = threading.local()
_functions: dict[str, type[torch.autograd.Function]] = {}
_eager: dict[str, Callable[..., Any]] = {}


def register(namespace: str, name: str, operator: Operator) -> None:
    qualified_name = f"{namespace}::{name}"
    torch.library.register_fake(qualified_name, operator.fake)
    if operator.derivative is not None:
        torch.library.register_autograd(qualified_name, operator.derivative, setup_context=operator.save)
    if operator.batch is not None:
        torch.library.register_vmap(qualified_name, _among_operators(operator.batch))
    if operator.derivative is not None and operator.batch is not None:
        _functions[name] = function = _function(name, operator)
        _eager[name] = apply_outside_transforms(function)


def _among_operators(batch: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """The rule for an operator, inside which the transforms are still to be seen but only operators may be called."""

    def rule(*arguments: Any) -> tuple[Any, Any]:
        outer = getattr(_place, "is_among_operators", False)
        _place.is_among_operators = True
        try:
            return batch(*arguments)
        finally:
            _place.is_among_operators = outer

    return rule


def _function(name: str, operator: Operator) -> type[torch.autograd.Function]:
    def forward(*arguments: Any) -> Any:
        with below_autograd():
            return getattr(_ops, name)(*arguments)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        operator.save(ctx, inputs, output)
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(*_leading_tensors(inputs))

    def pull_back(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        if all(grad is None for grad in grad_outputs):
            return (None,) * len(ctx.needs_input_grad)
        assert operator.derivative is not None
        return operator.derivative(ctx, *grad_outputs)

    def push_forward(ctx: Any, *tangents: Tensor | None) -> Any:
        of_linear, of_others = tangents[: operator.num_linear], tangents[operator.num_linear :]
        if any(tangent is not None for tangent in of_others):
            raise NotImplementedError(f"{name} has no forward-mode derivative for what it is not linear in")
        return call(name, *of_linear, *ctx.saved_tensors[operator.num_linear :], *ctx.options)

    parts = {
        "forward": forward,
        "setup_context": save if operator.num_linear else operator.save,
        "backward": pull_back,
        "vmap": operator.batch,
        "jvp": push_forward if operator.num_linear else None,
    }
    members = {part: staticmethod(function) for part, function in parts.items() if function is not None}
    return type(name, (torch.autograd.Function,), members)


def is_batched(argument: Any) -> bool:
    """Whether ``is_grads_batched=True`` made it: a transform of the old kind, which knows no operator of ours, and of
    whose batches a Function makes no node."""
    return isinstance(argument, Tensor) and not is_compiling() and is_legacy_batchedtensor(argument)


def apply_outside_transforms(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` without what it does for :mod:`torch.func`, where there is no transform."""
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


def call(name: str, *arguments: Any) -> Any:
    """The operator, differentiable and batchable wherever this is called. See Note [Two registrations]."""
    if name in _functions and not (getattr(_place, "is_among_operators", False) or is_compiling()):
        if is_under_transform():
            return _functions[name].apply(*arguments)  # type: ignore[no-untyped-call]
        if not has_dispatch_modes() and not any(map(is_batched, arguments)):
            return _eager[name](*arguments)
    return getattr(_ops, name)(*arguments)
