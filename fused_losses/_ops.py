"""The operators ``torch.ops.fused_losses.*``: loading them, and what torch must know to trace and differentiate them.

The operators under the losses' own names can be differentiated themselves (:func:`torch.library.register_autograd`),
so that a graph that holds one has the right gradient. The variants (``_forward``, ``_with_gradient``,
``_with_statistics``, ``_backward``, ``_over_logits``, ``_rescale_gradient``) are the Functions' building blocks and
have no derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _C, _cuda  # noqa: F401  loading them registers the operators and their kernels

_namespace = torch.ops.fused_losses

_Loss = Callable[..., Tensor]
_LossAndMore = Callable[..., tuple[Tensor, Tensor]]
_Overwrite = Callable[..., None]  # of a tensor that is given

cross_entropy: _Loss = _namespace.cross_entropy.default
cross_entropy_forward: _Loss = _namespace.cross_entropy_forward.default
cross_entropy_with_gradient: _LossAndMore = _namespace.cross_entropy_with_gradient.default
cross_entropy_with_statistics: _LossAndMore = _namespace.cross_entropy_with_statistics.default
cross_entropy_backward: _Loss = _namespace.cross_entropy_backward.default
cross_entropy_backward_over_logits: _Overwrite = _namespace.cross_entropy_backward_over_logits.default
nll_loss: _Loss = _namespace.nll_loss.default
nll_loss_forward: _Loss = _namespace.nll_loss_forward.default
nll_loss_backward: _Loss = _namespace.nll_loss_backward.default
binary_cross_entropy: _Loss = _namespace.binary_cross_entropy.default
binary_cross_entropy_forward: _Loss = _namespace.binary_cross_entropy_forward.default
binary_cross_entropy_with_gradient: _LossAndMore = _namespace.binary_cross_entropy_with_gradient.default
binary_cross_entropy_backward: _Loss = _namespace.binary_cross_entropy_backward.default
binary_cross_entropy_with_logits: _Loss = _namespace.binary_cross_entropy_with_logits.default
binary_cross_entropy_with_logits_forward: _Loss = _namespace.binary_cross_entropy_with_logits_forward.default
binary_cross_entropy_with_logits_with_gradient: _LossAndMore = (
    _namespace.binary_cross_entropy_with_logits_with_gradient.default
)
binary_cross_entropy_with_logits_backward: _Loss = _namespace.binary_cross_entropy_with_logits_backward.default
binary_cross_entropy_with_logits_backward_over_logits: _Overwrite = (
    _namespace.binary_cross_entropy_with_logits_backward_over_logits.default
)
cross_entropy_rescale_gradient: _Overwrite = _namespace.cross_entropy_rescale_gradient.default
binary_cross_entropy_rescale_gradient: _Overwrite = _namespace.binary_cross_entropy_rescale_gradient.default
binary_cross_entropy_with_logits_rescale_gradient: _Overwrite = (
    _namespace.binary_cross_entropy_with_logits_rescale_gradient.default
)
scale_gradient: _Overwrite = _namespace.scale_gradient.default
elementary_function: _Loss = _namespace.elementary_function.default


def _accumulation_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _position_sizes(input: Tensor) -> Sequence[int]:
    return input.shape[:1] + input.shape[2:] if input.dim() > 1 else ()


def _fake_class_loss(input: Tensor, reduction: int, dtype: torch.dtype) -> Tensor:
    return input.new_empty(_position_sizes(input) if reduction == 0 else (), dtype=dtype)


def _cross_entropy_dtype(logits: Tensor, target: Tensor, promote: bool) -> torch.dtype:
    by_probability = target.is_floating_point() and target.dtype != logits.dtype
    return _accumulation_dtype(logits) if promote or by_probability else logits.dtype


def _fake_cross_entropy(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    promote: bool,
) -> Tensor:
    return _fake_class_loss(logits, reduction, _cross_entropy_dtype(logits, target, promote))


def _fake_cross_entropy_with_gradient(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    promote: bool,
    grad_output: float = 1.0,
) -> tuple[Tensor, Tensor]:
    loss = _fake_cross_entropy(logits, target, class_weight, reduction, ignore_index, label_smoothing, promote)
    return loss, torch.empty_like(logits)


def _fake_cross_entropy_with_statistics(logits: Tensor, target: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    num_positions = 1
    for size in _position_sizes(logits):
        num_positions = num_positions * size
    statistics = logits.new_empty((3, num_positions), dtype=_accumulation_dtype(logits))
    return _fake_cross_entropy(logits, target, *others), statistics


def _fake_cross_entropy_backward(grad_output: Tensor, logits: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(logits)


def _fake_overwrite(*arguments: Any) -> None:
    """What is given is written over: no new tensor."""


def _fake_nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int, promote: bool
) -> Tensor:
    return _fake_class_loss(input, reduction, _accumulation_dtype(input) if promote else input.dtype)


def _fake_nll_loss_backward(
    grad_output: Tensor,
    target: Tensor,
    weight: Tensor | None,
    input_sizes: Sequence[int],
    input_type: torch.dtype,
    *others: Any,
) -> Tensor:
    return grad_output.new_empty(input_sizes, dtype=input_type)


def _fake_elementwise(input: Tensor, target: Tensor, *others: Any) -> Tensor:
    reduction = others[-1]
    return torch.empty_like(input, dtype=target.dtype) if reduction == 0 else target.new_empty(())


def _fake_elementwise_with_gradient(input: Tensor, target: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    # A scalar loss: the operator refuses losses that are not reduced. A default comes as an argument or not at all.
    return target.new_empty(()), torch.empty_like(input)


def _fake_elementwise_backward(grad_output: Tensor, input: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(input)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors = [value for value in inputs if isinstance(value, Tensor) or value is None]
    ctx.save_for_backward(*tensors)
    ctx.options = inputs[len(tensors) :]


def _differentiate_cross_entropy(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    _, statistics = cross_entropy_with_statistics(*ctx.saved_tensors, *ctx.options)
    gradient = cross_entropy_backward(grad_output, *ctx.saved_tensors, statistics, *ctx.options)
    return gradient, None, None, None, None, None, None


def _differentiate_nll_loss(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, target, weight = ctx.saved_tensors
    gradient = nll_loss_backward(grad_output, target, weight, input.shape, input.dtype, *ctx.options)
    return gradient, None, None, None, None, None


def _differentiate_binary_cross_entropy(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    return binary_cross_entropy_backward(grad_output, *ctx.saved_tensors, *ctx.options), None, None, None


def _differentiate_binary_cross_entropy_with_logits(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    gradient = binary_cross_entropy_with_logits_backward(grad_output, *ctx.saved_tensors, *ctx.options)
    return gradient, None, None, None, None


_FAKES: dict[Any, Callable[..., Any]] = {
    cross_entropy: _fake_cross_entropy,
    cross_entropy_forward: _fake_cross_entropy,
    cross_entropy_with_gradient: _fake_cross_entropy_with_gradient,
    cross_entropy_with_statistics: _fake_cross_entropy_with_statistics,
    cross_entropy_backward: _fake_cross_entropy_backward,
    nll_loss: _fake_nll_loss,
    nll_loss_forward: _fake_nll_loss,
    nll_loss_backward: _fake_nll_loss_backward,
    binary_cross_entropy: _fake_elementwise,
    binary_cross_entropy_forward: _fake_elementwise,
    binary_cross_entropy_with_gradient: _fake_elementwise_with_gradient,
    binary_cross_entropy_backward: _fake_elementwise_backward,
    binary_cross_entropy_with_logits: _fake_elementwise,
    binary_cross_entropy_with_logits_forward: _fake_elementwise,
    binary_cross_entropy_with_logits_with_gradient: _fake_elementwise_with_gradient,
    binary_cross_entropy_with_logits_backward: _fake_elementwise_backward,
    cross_entropy_backward_over_logits: _fake_overwrite,
    binary_cross_entropy_with_logits_backward_over_logits: _fake_overwrite,
    cross_entropy_rescale_gradient: _fake_overwrite,
    binary_cross_entropy_rescale_gradient: _fake_overwrite,
    binary_cross_entropy_with_logits_rescale_gradient: _fake_overwrite,
    scale_gradient: _fake_overwrite,
    elementary_function: lambda input, function: torch.empty_like(input),
}

_DERIVATIVES: dict[Any, Callable[..., Any]] = {
    cross_entropy: _differentiate_cross_entropy,
    nll_loss: _differentiate_nll_loss,
    binary_cross_entropy: _differentiate_binary_cross_entropy,
    binary_cross_entropy_with_logits: _differentiate_binary_cross_entropy_with_logits,
}

for _operator, _fake in _FAKES.items():
    torch.library.register_fake(_operator, _fake)
for _operator, _derivative in _DERIVATIVES.items():
    torch.library.register_autograd(_operator, _derivative, setup_context=_save_inputs)
