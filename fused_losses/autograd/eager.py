"""What surrounds a call: nobody who differentiates it, saved-tensor hooks, the short way through ``apply``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from ..operators.registration import apply_outside_transforms
from ..operators.versions import saves_through_hooks
from ..routing import may_be_differentiated_later
from .scale_history import Expectation


def eager_apply(function: type[torch.autograd.Function]) -> Callable[..., Tensor]:
    """``function.apply`` where the routing has ruled transforms out. Its nodes can be called, as torch's own can."""
    function._backward_cls.__call__ = _call_node  # type: ignore[method-assign]
    return apply_outside_transforms(function)


def _call_node(node: Any, *grad_outputs: Tensor) -> Any:
    """``loss.grad_fn(grad_output)``: the gradients of what was asked for, one alone not in a tuple."""
    gradients = node.apply(*grad_outputs)
    asked = tuple(g for g, needed in zip(gradients, node.needs_input_grad, strict=False) if needed)
    return asked[0] if len(asked) == 1 else asked


def loss_without_gradient(name: str, route: str, *arguments: Any) -> Tensor:
    """Where nobody differentiates the loss now; by its differentiable operator if a graph may yet be."""
    operator = name if may_be_differentiated_later(route) else f"{name}_forward"
    loss: Tensor = getattr(_ops, operator)(*arguments)
    return loss


def smoothed_target(target: Tensor, label_smoothing: float) -> Tensor:
    """For autograd to save: where torch saves what it smoothed, probabilities of inference mode are no error."""
    is_copied = label_smoothing and target.is_floating_point() and target.is_inference()
    return target.clone() if is_copied else target


def prepared_grad_output(reduction: int, expectation: Expectation) -> float | None:
    """The ``grad_output`` that the forward computes the gradient for; nothing where the backward computes it."""
    return None if reduction == 0 or saves_through_hooks() else expectation.grad_output
