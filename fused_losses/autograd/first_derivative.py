"""A backward whose results say so when somebody differentiates them.

:func:`torch.autograd.function.once_differentiable` says so only where the backward was given a gradient that needs one:
of a mean it is a constant, and the second derivative through what is saved would be missing without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

__all__ = ["first_derivative_only"]

_Gradients = tuple[Tensor | None, ...]


class _Last(torch.autograd.Function):
    """A gradient that depends on these tensors: whoever asks for a derivative for one of them comes by here."""

    @staticmethod
    def forward(ctx: Any, what: str, gradient: Tensor, *tensors: Tensor) -> Tensor:
        ctx.what = what
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, ...]:
        raise RuntimeError(f"{ctx.what} cannot be differentiated twice")


def first_derivative_only(what: str) -> Callable[[Callable[..., _Gradients]], Callable[..., _Gradients]]:
    """Of ``backward(ctx, saved_tensors, *grad_outputs)``.

    Args:
        what: is differentiated; in the plural. Each input that may require a gradient must be among its saved tensors.
    """

    def guard(backward: Callable[..., _Gradients]) -> Callable[..., _Gradients]:
        @wraps(backward)
        def guarded(ctx: Any, *grad_outputs: Tensor | None) -> _Gradients:
            saved = ctx.saved_tensors  # once: a checkpoint unpacks them no second time
            with torch.no_grad():
                gradients = backward(ctx, saved, *grad_outputs)
            if not torch.is_grad_enabled():
                return gradients
            tensors = [t for t in (*saved, *grad_outputs) if t is not None and t.requires_grad]
            return tuple(
                None if gradient is None else _Last.apply(what, gradient, *tensors)  # type: ignore[no-untyped-call]
                for gradient in gradients
            )

        return guarded

    return guard
