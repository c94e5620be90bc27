"""What torch must know of the operators of negative log-likelihood.

The loss is linear in its input, so the gradient does not depend on it, and is linear in grad_output: its derivative for
grad_output in direction v is the loss of v.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..routing import is_compiling, is_under_transform
from ..torch_losses import torch_function
from .batching import batch_first, call_one_by_one, reduce_stack, spread_stack
from .class_axis import (
    FLOAT_DTYPES,
    accumulation_dtype,
    fake_class_loss,
    fold,
    fold_positions,
    position_sizes,
    refusal_of_class_indices,
    refusal_of_class_weight,
    refusal_of_ignore_index,
    stack_weights,
)
from .composite import other_gradients
from .registration import MEAN, NONE, REDUCTION_NAMES, Operator, call

_Options = tuple[int, int, bool]  # reduction, ignore_index, promote


def loss_dtype(input: Tensor, promote: bool) -> torch.dtype:
    """The type of the loss."""
    return accumulation_dtype(input.dtype) if promote else input.dtype


def refusal(input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, promote: bool) -> str | None:
    """Why the kernels do not compute this loss, or ``None``."""
    if input.dtype not in FLOAT_DTYPES or input.dim() == 0:
        return "the input is no floating-point tensor with a class axis"
    return (
        refusal_of_ignore_index(ignore_index)
        or refusal_of_class_indices(input, target)
        or refusal_of_class_weight(input, weight, promote)
    )


# Fake kernels


def _fake_loss(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int, promote: bool
) -> Tensor:
    return fake_class_loss(input, reduction, loss_dtype(input, promote))


def _fake_backward(
    grad_output: Tensor,
    target: Tensor,
    weight: Tensor | None,
    input_sizes: Sequence[int],
    input_type: torch.dtype,
    *options: Any,
) -> Tensor:
    return grad_output.new_empty(input_sizes, dtype=input_type)


# Derivatives


def composite(options: _Options, input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Torch's own negative log-likelihood with the operators' options."""
    reduction, ignore_index, promote = options
    if target.dtype == torch.int32:
        target = target.long()
    if promote:
        dtype = accumulation_dtype(input.dtype)
        input = input.to(dtype)
        weight = None if weight is None else weight.to(dtype)
    return torch_function("nll_loss")(
        input, target, weight, ignore_index=ignore_index, reduction=REDUCTION_NAMES[reduction]
    )


def _differentiate_loss(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, target, weight = tensors = ctx.saved_tensors
    gradient = call("nll_loss_backward", grad_output, target, weight, input.shape, input.dtype, *ctx.options)
    if torch.is_grad_enabled():
        gradient = constant_of(input, gradient)
    others = other_gradients(ctx, partial(composite, ctx.options), tensors, grad_output)
    return (gradient, *others, None, None, None)


def constant_of(input: Tensor, gradient: Tensor) -> Tensor:
    """A gradient that does not depend on the input it is the gradient for: its derivative is zeros, not nothing."""
    if is_under_transform() or is_compiling():
        return torch.where(torch.ones((), dtype=torch.bool, device=input.device), gradient, input)
    constant: Tensor = _ConstantOf.apply(gradient, input)  # type: ignore[no-untyped-call]
    return constant


class _ConstantOf(torch.autograd.Function):
    """Without reading either."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, input: Tensor) -> Tensor:
        ctx.sizes = input.shape
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        return grad_output, grad_output.new_zeros(()).expand(ctx.sizes)


def _differentiate_backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
    grad_output, target, weight = ctx.saved_tensors
    if ctx.needs_input_grad[2]:
        raise NotImplementedError("second derivatives for class weights are left to torch's own nll_loss")
    _, _, *options = ctx.options
    losses = call("nll_loss", direction, target, weight, *options)
    return (losses.to(grad_output.dtype), *[None] * 7)


# Batching: see cross_entropy.py.


def _denominators(target: Tensor, weight: Tensor | None, ignore_index: int, reduction: int) -> Tensor | None:
    return stack_weights(target, weight, ignore_index) if reduction == MEAN else None


def _batch_loss(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
    input, target, weight, reduction, ignore_index, promote = arguments
    if in_dims[2] is not None:
        return call_one_by_one("nll_loss", info, in_dims, *arguments)
    input, target = (batch_first(tensor, info, dim) for tensor, dim in zip((input, target), in_dims, strict=False))
    losses = call(
        "nll_loss",
        fold(input, input.dim() - 1),
        fold_positions(target),
        weight,
        NONE,
        ignore_index,
        promote or reduction != NONE,
    )
    losses = losses.view(info.batch_size, *position_sizes(input.shape[1:]))
    if reduction != NONE:
        losses = reduce_stack(
            losses, _denominators(target, weight, ignore_index, reduction), loss_dtype(input, promote)
        )
    return losses, 0


def _batch_backward(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    grad_output, target, weight, sizes, dtype, reduction, ignore_index, promote = arguments
    if in_dims[2] is not None:
        dims = (*in_dims[:3], *[None] * 5)
        return call_one_by_one("nll_loss_backward", info, dims, *arguments)
    stacks = (batch_first(t, info, dim) for t, dim in zip((grad_output, target), in_dims, strict=False))
    grad_output, target = stacks
    if reduction != NONE:
        denominators = _denominators(target, weight, ignore_index, reduction)
        grad_output = spread_stack(grad_output.to(accumulation_dtype(dtype)), denominators, target.shape)
    stack_sizes = (info.batch_size, *sizes)
    folded_sizes = stack_sizes if len(sizes) == 1 else (info.batch_size * sizes[0], *sizes[1:])
    gradient = call(
        "nll_loss_backward",
        fold_positions(grad_output),
        fold_positions(target),
        weight,
        folded_sizes,
        dtype,
        NONE,
        ignore_index,
        promote,
    )
    return gradient.view(stack_sizes), 0


OPERATORS = {
    "nll_loss": Operator(fake=_fake_loss, derivative=_differentiate_loss, batch=_batch_loss, num_linear=1),
    "nll_loss_forward": Operator(fake=_fake_loss, batch=_batch_loss),
    "nll_loss_backward": Operator(
        fake=_fake_backward, derivative=_differentiate_backward, batch=_batch_backward, num_linear=1
    ),
}
