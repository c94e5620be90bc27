"""What torch must know of the operators of cross-entropy.

With the total mass M, the dense mass q and the point mass y of a row (Note [Target mass] in ``csrc/core``), s the
gradient of its loss and p its softmax, the gradient is ``s (M p - q - y [c = t])``. Its derivative in direction v is
``s M p (v - <p, v>)`` for the logits, and ``<v, M p - q - y [c = t]>`` for s.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..routing import HALF_DTYPES, is_compiling
from ..torch_losses import torch_function
from .batching import batch_first, call_one_by_one, reduce_stack, spread_stack
from .class_axis import (
    FLOAT_DTYPES,
    accumulation_dtype,
    class_dim,
    fake_class_loss,
    fold,
    fold_positions,
    fold_target,
    is_counted,
    mean_denominator,
    position_sizes,
    refusal_of_class_indices,
    refusal_of_class_weight,
    refusal_of_ignore_index,
    stack_weights,
    target_weights,
    unfold,
)
from .composite import other_gradients, second_gradients
from .registration import MEAN, NONE, REDUCTION_NAMES, Operator, call
from .row_terms import RowTerms, composite_with_terms, has_terms
from .versions import check_versions, remember_versions

_MOST_STRIDED_CLASSES = 2**31 - 1

_Options = tuple[Any, ...]  # reduction, ignore_index, label_smoothing, promote, and RowTerms if there are any


def is_probability(target: Tensor) -> bool:
    return target.is_floating_point()


def loss_dtype(logits: Tensor, target: Tensor, promote: bool) -> torch.dtype:
    """The type of the loss."""
    by_probability = is_probability(target) and target.dtype != logits.dtype
    return accumulation_dtype(logits.dtype) if promote or by_probability else logits.dtype


def refusal(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    promote: bool,
) -> str | None:
    """Why the kernels do not compute this cross-entropy, or ``None``."""
    if logits.dtype not in FLOAT_DTYPES or logits.dim() == 0:
        return "the logits are no floating-point tensor with a class axis"
    if not is_compiling() and logits.numel() > _MOST_STRIDED_CLASSES and _has_too_many_strided_classes(logits):
        return "there are 2^31 classes and more along a strided axis"
    if (reason := refusal_of_ignore_index(ignore_index)) is not None:
        return reason
    if not (type(label_smoothing) in (float, int) and 0 <= label_smoothing <= 1):
        return "label_smoothing is no number in [0, 1]"
    if is_probability(target) and target.shape == logits.shape:
        if target.dtype != logits.dtype and not (logits.dtype in HALF_DTYPES and target.dtype == torch.float32):
            return "there is no kernel for these types of logits and probabilities"
        if ignore_index >= 0:
            return "ignore_index is for class indices"
    elif (reason := refusal_of_class_indices(logits, target)) is not None:
        return reason
    return refusal_of_class_weight(logits, class_weight, promote)


def _has_too_many_strided_classes(logits: Tensor) -> bool:
    dim = class_dim(logits.shape)
    return logits.shape[dim] > _MOST_STRIDED_CLASSES and logits.stride(dim) != 1


# Fake kernels


def _fake_loss(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    promote: bool,
    *terms: float,
) -> Tensor:
    return fake_class_loss(logits, reduction, loss_dtype(logits, target, promote))


def _fake_with_gradient(
    logits: Tensor, target: Tensor, class_weight: Tensor | None, grad_output: float, *options: Any
) -> tuple[Tensor, Tensor]:
    return _fake_loss(logits, target, class_weight, *options), torch.empty_like(logits)


def _fake_with_statistics(
    logits: Tensor, target: Tensor, class_weight: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    num_positions = math.prod(position_sizes(logits.shape))
    statistics = logits.new_empty((3, num_positions), dtype=accumulation_dtype(logits.dtype))
    return _fake_loss(logits, target, class_weight, *options), statistics


def _fake_backward(grad_output: Tensor, logits: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(logits)


# Derivatives


def composite(options: _Options, logits: Tensor, target: Tensor, class_weight: Tensor | None) -> Tensor:
    """Torch's own cross-entropy with the operators' options."""
    reduction, ignore_index, label_smoothing, promote, *terms = options
    if has_terms(terms):
        loss = composite_with_terms(
            logits, target, class_weight, reduction, ignore_index, label_smoothing, RowTerms(*terms)
        )
        return loss.to(loss_dtype(logits, target, promote))
    if target.dtype == torch.int32:
        target = target.long()
    if promote:
        dtype = accumulation_dtype(logits.dtype)
        logits = logits.to(dtype)
        target = target.to(dtype) if is_probability(target) else target
        class_weight = None if class_weight is None else class_weight.to(dtype)
    return torch_function("cross_entropy")(
        logits,
        target,
        class_weight,
        ignore_index=ignore_index,
        reduction=REDUCTION_NAMES[reduction],
        label_smoothing=label_smoothing,
    )


def _differentiate_loss(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    arguments = ctx.saved_tensors
    _, statistics = call("cross_entropy_with_statistics", *arguments, *ctx.options)
    return _gradients(ctx, grad_output, arguments, statistics)


def _save_with_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, statistics = output
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)
    remember_versions(statistics, inputs[0])
    ctx.save_for_backward(statistics, *inputs[:3])  # in the order of CrossEntropyFunction: see there
    ctx.options = inputs[3:]


def _differentiate_with_statistics(ctx: Any, grad_output: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return (None,) * (3 + len(ctx.options))
    statistics, *arguments = ctx.saved_tensors
    check_versions(statistics, arguments[0])
    return _gradients(ctx, grad_output, arguments, statistics)


def _gradients(ctx: Any, grad_output: Tensor, arguments: Any, statistics: Tensor) -> tuple[Tensor | None, ...]:
    gradient = call("cross_entropy_backward", grad_output, *arguments, statistics, *ctx.options)
    others = other_gradients(ctx, partial(composite, ctx.options), arguments, grad_output)
    return (gradient, *others, *(None for _ in ctx.options))


def _differentiate_backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
    """See the top of this file. The statistics are the logits' own: what depends on them is in the logits' part."""
    grad_output, logits, target, class_weight, statistics = ctx.saved_tensors
    reduction, _, _, _, *terms = ctx.options
    wants_scale, wants_logits, wants_target, wants_weight, *_ = ctx.needs_input_grad
    if wants_target or wants_weight or has_terms(terms):
        formula = partial(composite, ctx.options)
        arguments = (grad_output, logits, target, class_weight)
        return (*second_gradients(ctx, formula, arguments, direction), None, *(None for _ in ctx.options))
    dtype = accumulation_dtype(logits.dtype)
    dim = class_dim(logits.shape)
    for_scale = for_logits = None
    if wants_scale:
        # Of 16 bits, the gradient of a mean and its products may be too small to be told from 0.
        exact = (t.to(dtype) if t is not None and t.is_floating_point() else t for t in (logits, target, class_weight))
        of_one = call("cross_entropy_backward", torch.ones_like(grad_output), *exact, statistics, *ctx.options)
        products = direction.to(dtype) * of_one
        for_scale = products.sum(dim, dtype=dtype) if reduction == NONE else products.sum(dtype=dtype)
        for_scale = for_scale.to(grad_output.dtype)
    if wants_logits:
        scale = _row_scale(grad_output, logits, target, class_weight, ctx.options, dtype).unsqueeze(dim)
        softmax = torch.softmax(logits, dim, dtype=dtype)
        for_logits = torch._softmax_backward_data(direction.to(dtype), softmax, dim, dtype)  # p (v - <p, v>)
        for_logits = for_logits * scale if torch.is_grad_enabled() else for_logits.mul_(scale)
        for_logits = for_logits.to(logits.dtype)
    return (for_scale, for_logits, None, None, None, *(None for _ in ctx.options))


def _row_scale(
    grad_output: Tensor,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    options: _Options,
    dtype: torch.dtype,
) -> Tensor:
    """s M of every position; 0 where the target is ignored."""
    reduction, ignore_index, label_smoothing, *_ = options
    dim = class_dim(logits.shape)
    num_classes = logits.shape[dim]
    grad_output = grad_output.to(dtype)
    if is_probability(target):
        mass = target.to(dtype) * (1 - label_smoothing) + label_smoothing / num_classes
        if class_weight is not None:
            mass = mass * class_weight.to(dtype).view(-1, *[1] * (logits.dim() - dim - 1))
        scale: Tensor = mass.sum(dim)
        return scale * (grad_output / scale.numel() if reduction == MEAN else grad_output)
    if reduction == MEAN:
        grad_output = grad_output / mean_denominator(target, class_weight, ignore_index, label_smoothing, logits)
    if class_weight is not None:
        weights = target_weights(target, class_weight, ignore_index, dtype)
        if label_smoothing:  # 0 times an infinite weight is none of its business
            weights = weights * (1 - label_smoothing) + label_smoothing * class_weight.to(dtype).mean()
        grad_output = weights * grad_output
    return torch.where(is_counted(target, ignore_index), grad_output, 0)


# Batching: a stack of samples is one longer sample, unreduced; each sample is reduced on its own afterwards.


def _denominators(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor | int | None:
    """Of the mean of each sample of a stack."""
    if reduction != MEAN:
        return None
    if is_probability(target):
        return logits[0].numel() // logits.shape[1 + class_dim(logits.shape[1:])]
    return stack_weights(target, class_weight, ignore_index, label_smoothing)


def _batch_with_statistics(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
    logits, target, class_weight, reduction, ignore_index, label_smoothing, promote, *terms = arguments
    if in_dims[2] is not None:
        return call_one_by_one("cross_entropy_with_statistics", info, in_dims, *arguments)
    logits, target = (batch_first(tensor, info, dim) for tensor, dim in zip((logits, target), in_dims, strict=False))
    losses, statistics = call(
        "cross_entropy_with_statistics",
        fold(logits, logits.dim() - 1),
        fold_target(target),
        class_weight,
        NONE,
        ignore_index,
        label_smoothing,
        promote or reduction != NONE,
        *terms,
    )
    losses = losses.view(info.batch_size, *position_sizes(logits.shape[1:]))
    if reduction != NONE:
        denominators = _denominators(logits, target, class_weight, reduction, ignore_index, label_smoothing)
        losses = reduce_stack(losses, denominators, loss_dtype(logits, target, promote))
    return (losses, statistics.view(len(statistics), info.batch_size, -1)), (0, 1)


def _batch_loss(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
    (losses, _), _ = _batch_with_statistics(info, in_dims, *arguments)
    return losses, 0


def _batch_backward(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
    tensors = list(arguments[:5])
    reduction, ignore_index, label_smoothing, promote, *terms = arguments[5:]
    if in_dims[3] is not None:
        return call_one_by_one("cross_entropy_backward", info, in_dims, *arguments)
    class_weight = tensors.pop(3)
    tensor_dims = (*in_dims[:3], in_dims[4])
    stacks = (batch_first(tensor, info, dim) for tensor, dim in zip(tensors, tensor_dims, strict=True))
    grad_output, logits, target, statistics = stacks
    if reduction != NONE:
        positions = (info.batch_size, *position_sizes(logits.shape[1:]))
        denominators = _denominators(logits, target, class_weight, reduction, ignore_index, label_smoothing)
        grad_output = spread_stack(grad_output.to(accumulation_dtype(logits.dtype)), denominators, positions)
    gradient = call(
        "cross_entropy_backward",
        fold_positions(grad_output),
        fold(logits, logits.dim() - 1),
        fold_target(target),
        class_weight,
        statistics.movedim(0, 1).flatten(1).contiguous(),
        NONE,
        ignore_index,
        label_smoothing,
        promote,
        *terms,
    )
    return unfold(gradient, logits), 0


OPERATORS = {
    "cross_entropy": Operator(fake=_fake_loss, derivative=_differentiate_loss, batch=_batch_loss),
    "cross_entropy_forward": Operator(fake=_fake_loss, batch=_batch_loss),
    "cross_entropy_with_gradient": Operator(fake=_fake_with_gradient),
    "cross_entropy_with_statistics": Operator(
        fake=_fake_with_statistics,
        derivative=_differentiate_with_statistics,
        save=_save_with_statistics,
        batch=_batch_with_statistics,
    ),
    "cross_entropy_prepared": Operator(
        fake=_fake_with_statistics,
        derivative=_differentiate_with_statistics,
        save=_save_with_statistics,
        batch=_batch_with_statistics,
    ),
    "cross_entropy_backward": Operator(
        fake=_fake_backward, derivative=_differentiate_backward, batch=_batch_backward, num_linear=1
    ),
}
