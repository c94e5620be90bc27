"""What the operators of both binary losses share: they differ in the number of weights and in a formula.

The fake kernels and the refusal are the focal loss's, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..routing import HALF_DTYPES, are_transforms_active, is_autocast
from .batching import batch_first, reduce_stack, spread_stack
from .class_axis import FLOAT_DTYPES, accumulation_dtype
from .composite import other_gradients, second_gradients
from .registration import MEAN, NONE, Operator, call

_MOST_BROADCAST_DIMS = 8  # kMaxBroadcastDims in csrc/core


def autocast_dtype(target: Tensor) -> torch.dtype:
    """The type that autocast gives the target of an elementwise loss, and so the loss."""
    return torch.float32 if target.dtype in HALF_DTYPES and is_autocast(target) else target.dtype


def refusal(input: Tensor, target_dtype: torch.dtype, target: Tensor, *weights: Tensor | None) -> str | None:
    """Why the kernels do not compute this loss, or ``None``. The target is going to have ``target_dtype``."""
    if input.dtype not in FLOAT_DTYPES:
        return "the input is no floating-point tensor"
    if target.shape != input.shape:
        return "the target's shape is not the input's"
    if target_dtype != input.dtype and not (input.dtype in HALF_DTYPES and target_dtype == torch.float32):
        return "there is no kernel for these types of input and target"
    for weight in weights:
        if weight is None:
            continue
        if weight.dtype != input.dtype and weight.dtype != target_dtype:
            return "a weight's type is neither the input's nor the target's"
        if weight.dim() > input.dim() or weight.dim() > _MOST_BROADCAST_DIMS:
            return "a weight has too many axes"
        own_sizes = input.shape[input.dim() - weight.dim() :]
        if any(size not in (1, own_size) for size, own_size in zip(weight.shape, own_sizes, strict=True)):
            return "a weight does not broadcast to the input's shape"
    return None


# Fake kernels


def fake_loss(input: Tensor, target: Tensor, *others: Any) -> Tensor:
    reduction = others[-1]
    return torch.empty_like(input, dtype=target.dtype) if reduction == NONE else target.new_empty(())


def _fake_with_gradient(input: Tensor, target: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return target.new_empty(()), torch.empty_like(input)  # only reduced losses have it


def fake_backward(grad_output: Tensor, input: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(input)


def _fake_prepared(input: Tensor, target: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return fake_loss(input, target, *others), input.new_empty(1, dtype=torch.float32)


# Derivatives.


def differentiate_loss(
    backward: str, composite: Callable[..., Tensor], ctx: Any, grad_output: Tensor
) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    gradient = call(backward, grad_output, *tensors, *ctx.options)
    others = other_gradients(ctx, partial(composite, *ctx.options), tensors, grad_output)
    return (gradient, *others, *[None] * len(ctx.options))


def _save_prepared(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, ticket = output
    ctx.mark_non_differentiable(ticket)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:-1], ticket)
    ctx.options = inputs[-1:]


def _differentiate_prepared(
    loss: str, composite: Callable[..., Tensor], ctx: Any, grad_output: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    """With the gradient that may wait under the ticket, unless somebody differentiates or batches this once more."""
    *tensors, ticket = ctx.saved_tensors
    if grad_output is None:
        return (None,) * (len(tensors) + 1)
    (reduction,) = ctx.options
    if torch.is_grad_enabled() or are_transforms_active():
        gradient = call(f"{loss}_backward", grad_output, *tensors, reduction)
    else:
        gradient = call(f"{loss}_prepared_backward", grad_output, *tensors, ticket, reduction)
    others = other_gradients(ctx, partial(composite, *ctx.options), tensors, grad_output)
    return (gradient, *others, None)


def differentiate_backward(
    backward: str,
    composite: Callable[..., Tensor],
    second_derivative: Callable[..., Tensor],
    ctx: Any,
    direction: Tensor,
) -> tuple[Tensor | None, ...]:
    reduction = ctx.options[-1]
    grad_output, *tensors = ctx.saved_tensors
    input = tensors[0]
    others = [None] * len(ctx.options)
    if any(ctx.needs_input_grad[2:]):
        arguments = (grad_output, *tensors)
        return (*second_gradients(ctx, partial(composite, *ctx.options), arguments, direction), *others)
    dtype = accumulation_dtype(input.dtype)
    exact = [None if tensor is None else tensor.to(dtype) for tensor in tensors]
    for_grad_output = for_input = None
    if ctx.needs_input_grad[0]:
        products = direction.to(dtype) * call(backward, torch.ones_like(grad_output, dtype=dtype), *exact, *ctx.options)
        for_grad_output = products if reduction == NONE else products.sum(dtype=dtype)
        for_grad_output = for_grad_output.to(grad_output.dtype)
    if ctx.needs_input_grad[1]:
        scale = grad_output.to(dtype) / (input.numel() if reduction == MEAN else 1)
        for_input = second_derivative(direction.to(dtype) * scale, *exact, *ctx.options[:-1]).to(input.dtype)
    return (for_grad_output, for_input, *[None] * (len(tensors) - 1), *others)


# Batching: the batch is one axis more, and each sample is reduced on its own afterwards.


def _stacks(info: Any, in_dims: tuple[int | None, ...], tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Input and target with the batch first, and the weights so that they broadcast to them."""
    input, target, *weights = tensors
    assert input is not None and target is not None
    stacks: list[Tensor | None] = [batch_first(input, info, in_dims[0]), batch_first(target, info, in_dims[1])]
    sample_dims = stacks[0].dim() - 1  # type: ignore[union-attr]
    for weight, in_dim in zip(weights, in_dims[2:], strict=True):
        if weight is not None and in_dim is not None:
            stack = weight.movedim(in_dim, 0)
            weight = stack.view(len(stack), *[1] * (sample_dims + 1 - stack.dim()), *stack.shape[1:])
        stacks.append(weight)
    return stacks


def _batch_loss(loss: str, info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
    *tensors, reduction = arguments
    input, target, *weights = _stacks(info, in_dims[:-1], tuple(tensors))
    if reduction == NONE:
        return call(loss, input, target, *weights, NONE), 0
    assert input is not None and target is not None
    # 16-bit losses would be rounded before they are added.
    exact_target = target.float() if target.dtype.itemsize == 2 and input.dtype.itemsize == 2 else target
    losses = call(loss, input, exact_target, *weights, NONE)
    return reduce_stack(losses, input[0].numel() if reduction == MEAN else None, target.dtype), 0


def _batch_prepared(loss: str, info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
    losses, dim = _batch_loss(loss, info, in_dims, *arguments)
    return (losses, losses.new_zeros(1, dtype=torch.float32)), (dim, None)


def _batch_backward(backward: str, info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
    grad_output, *tensors, reduction = arguments
    input, target, *weights = _stacks(info, in_dims[1:-1], tuple(tensors))
    assert input is not None and target is not None
    grad_output = batch_first(grad_output, info, in_dims[0])
    if reduction != NONE:
        denominator = input[0].numel() if reduction == MEAN else None
        grad_output = spread_stack(grad_output.to(accumulation_dtype(input.dtype)), denominator, input.shape)
    return call(backward, grad_output.contiguous(), input, target, *weights, NONE), 0


def operators_of(
    loss: str, composite: Callable[..., Tensor], second_derivative: Callable[..., Tensor]
) -> dict[str, Operator]:
    """The operators of one of the losses.

    Args:
        loss: its name.
        composite: ``composite(reduction, *tensors)`` is torch's own loss.
        second_derivative: ``second_derivative(factor, *tensors)`` is the loss's for its input, multiplied, in the type
            of computation.
    """
    backward = f"{loss}_backward"
    batch = partial(_batch_loss, loss)
    return {
        loss: Operator(fake=fake_loss, derivative=partial(differentiate_loss, backward, composite), batch=batch),
        f"{loss}_forward": Operator(fake=fake_loss, batch=batch),
        f"{loss}_with_gradient": Operator(fake=_fake_with_gradient),
        f"{loss}_prepared": Operator(
            fake=_fake_prepared,
            derivative=partial(_differentiate_prepared, loss, composite),
            save=_save_prepared,
            batch=partial(_batch_prepared, loss),
        ),
        f"{loss}_prepared_backward": Operator(fake=fake_backward),
        backward: Operator(
            fake=fake_backward,
            derivative=partial(differentiate_backward, backward, composite, second_derivative),
            batch=partial(_batch_backward, backward),
            num_linear=1,
        ),
    }
