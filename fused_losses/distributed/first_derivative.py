"""A backward whose results say so when somebody differentiates them.

:func:`torch.autograd.function.once_differentiable` says so only where the backward was given a gradient that needs one:
of a mean it is a constant, and the second derivative through the saved logits would be missing without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

__all__ = ["first_derivative_only"]

_Backward = Callable[..., tuple[Tensor | None, ...]]


class _Last(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, requires_grad: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, None]:
        raise RuntimeError("losses of a vocabulary that is spread over ranks cannot be differentiated twice")


def first_derivative_only(backward: _Backward) -> _Backward:
    @wraps(backward)
    def guarded(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            gradients = backward(ctx, *grad_outputs)
        if not torch.is_grad_enabled():
            return gradients
        something = torch.zeros((), requires_grad=True)
        return tuple(
            None if gradient is None else _Last.apply(gradient, something)  # type: ignore[no-untyped-call]
            for gradient in gradients
        )

    return guarded
