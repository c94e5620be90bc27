"""The statistics of tokens of a linear layer as one operator for compiled graphs, and one for its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..operators.class_axis import accumulation_dtype
from ..operators.linear_cross_entropy import empty_gradients
from ..operators.token_statistics import NUM_SAVED
from .linear_token_statistics import StatisticsOptions, fused_linear_token_statistics, gradients_of_statistics

__all__ = ["linear_token_statistics_in_a_graph"]

_TENSORS = "Tensor input, Tensor weight, Tensor? bias, Tensor target"
_OPTIONS = "float logit_scale, float softcap, SymInt ignore_index"
_NUM_TENSORS = 4
_NUM_ARGUMENTS = 7  # tensors and options


@torch.library.custom_op(
    "fused_losses::linear_token_statistics",
    mutates_args=(),
    schema=f"({_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _statistics(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    return fused_linear_token_statistics(options, input, weight, bias, target)


@_statistics.register_fake
def _(input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *options: Any) -> tuple[Tensor, ...]:
    num_rows, dtype = input.shape[0], accumulation_dtype(input.dtype)
    of_rows = [input.new_empty(num_rows, dtype=dtype) for _ in range(3)]
    argmax = input.new_empty(num_rows, dtype=torch.int64)
    return (*of_rows, argmax, input.new_empty(NUM_SAVED, num_rows, dtype=dtype))


@torch.library.custom_op(
    "fused_losses::linear_token_statistics_backward",
    mutates_args=(),
    schema="(Tensor? grad_log_prob, Tensor? grad_log_sum_exp, Tensor? grad_entropy, "
    f"{_TENSORS}, Tensor saved, bool[3] wanted, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
)
def _statistics_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Of input, weight and bias; nothing of what is not wanted."""
    grads, tensors, (saved, wanted, *options) = arguments[:3], arguments[3 : 3 + _NUM_TENSORS], arguments[7:]
    gradients = gradients_of_statistics(tuple(options), tensors, saved, wanted, grads)
    return tuple(tensors[0].new_empty(0) if gradient is None else gradient for gradient in gradients)


@_statistics_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    input, weight = arguments[3:5]
    return tuple(empty_gradients(input, weight, arguments[8]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *_, argmax, saved = output
    ctx.mark_non_differentiable(argmax, saved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:_NUM_TENSORS], saved)
    ctx.options = inputs[_NUM_TENSORS:]


def _differentiate(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = grad_outputs[:3]
    found: list[Tensor | None] = [None] * _NUM_ARGUMENTS
    if any(grad is not None for grad in grads):
        wanted = list(ctx.needs_input_grad[:3])
        gradients = _statistics_backward(*grads, *ctx.saved_tensors, wanted, *ctx.options)
        found[:3] = (gradient if wants else None for gradient, wants in zip(gradients, wanted, strict=True))
    return tuple(found)


_statistics.register_autograd(_differentiate, setup_context=_save)


def linear_token_statistics_in_a_graph(options: StatisticsOptions, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """The four statistics. ``tensors`` are those of :class:`LinearTokenStatisticsFunction`."""
    results: tuple[Tensor, ...] = _statistics(*tensors, *options)
    return results[:-1]
