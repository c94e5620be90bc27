"""A linear cross-entropy that keeps no gradients as operators for compiled graphs: one for each way.

Of an unreduced loss, and of one whose weights of tokens are differentiated: see Note [Gradients of a linear loss]. What
a chunk's statistics are depends on which rows count, so that a graph does not hold them, and the backward computes them
again with the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..operators.class_axis import accumulation_dtype
from ..operators.linear_cross_entropy import LinearLossOptions, autocast_is_off, empty_gradients, sizes_of_losses
from ..operators.registration import NONE
from .linear_cross_entropy import computed_gradients, gradients_of_constants
from .linear_problem import LinearProblem

__all__ = ["NUM_TENSORS", "recomputed_linear_cross_entropy"]

_TENSORS = "Tensor input, Tensor weight, Tensor? bias, Tensor target, Tensor? class_weight, Tensor? token_weight"
_OPTIONS = (
    "SymInt? chunk_rows, SymInt num_classes, SymInt reduction, SymInt ignore_index, float label_smoothing, "
    "float logit_scale, float softcap, float lse_square_scale, ScalarType loss_dtype"
)
NUM_TENSORS = 6  # before the options


@torch.library.custom_op(
    "fused_losses::linear_cross_entropy_recomputed",
    mutates_args=(),
    schema=f"({_TENSORS}, bool wants_token_weight, {_OPTIONS}) -> (Tensor, Tensor)",
)
def _recomputed(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The loss and, where weights of tokens are differentiated, the losses without them."""
    input, weight, bias, target, class_weight, token_weight = arguments[:NUM_TENSORS]
    wants_token_weight, chunk_rows, *options = arguments[NUM_TENSORS:]
    asked = LinearLossOptions(*options)
    with torch.no_grad(), autocast_is_off(input.device.type):
        tensors = (input, weight, bias, target, class_weight, token_weight)
        problem = LinearProblem(asked, chunk_rows, *tensors, keeps_weightless=wants_token_weight)
        losses = problem.losses()
        loss = problem.reduced(losses).to(asked.loss_dtype)
    return loss, losses if wants_token_weight else losses.new_empty(0)


@_recomputed.register_fake
def _(input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, wants_token_weight, _chunk_rows = others[:4]
    asked = LinearLossOptions(*others[4:])
    sizes = sizes_of_losses(target)
    losses = input.new_empty(sizes if wants_token_weight else 0, dtype=accumulation_dtype(input.dtype))
    return input.new_empty(sizes if asked.reduction == NONE else (), dtype=asked.loss_dtype), losses


@torch.library.custom_op(
    "fused_losses::linear_cross_entropy_recomputed_backward",
    mutates_args=(),
    schema=f"(Tensor grad_output, {_TENSORS}, Tensor losses, bool[6] wanted, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _recomputed_backward(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Of input, weight, bias and token weight; nothing of what is not wanted."""
    input, tensors = arguments[0], arguments[:NUM_TENSORS]
    losses, wanted, chunk_rows, *options = arguments[NUM_TENSORS:]
    with torch.no_grad(), autocast_is_off(input.device.type):
        gradients = computed_gradients(
            LinearLossOptions(*options), chunk_rows, tensors, wanted, grad_output, losses if wanted[5] else None
        )
    return tuple(input.new_empty(0) if gradient is None else gradient for gradient in gradients)


@_recomputed_backward.register_fake
def _(grad_output: Tensor, input: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, ...]:
    token_weight, wanted = others[3], others[5]
    of_token_weight = token_weight.new_empty(token_weight.shape) if wanted[5] else input.new_empty(0)
    return *empty_gradients(input, weight, wanted[:3]), of_token_weight


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:NUM_TENSORS], output[1])
    ctx.options = inputs[NUM_TENSORS + 1 :]


def _differentiate(ctx: Any, grad_output: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    found: list[Tensor | None] = [None] * (NUM_TENSORS + 1 + len(ctx.options))
    if grad_output is not None:
        wanted = list(ctx.needs_input_grad[:NUM_TENSORS])
        saved = ctx.saved_tensors  # once: a checkpoint unpacks them no second time
        gradients = _recomputed_backward(grad_output, *saved, wanted, *ctx.options)
        for i, gradient in zip((0, 1, 2, 5), gradients, strict=True):
            found[i] = gradient if wanted[i] else None
        options = LinearLossOptions(*ctx.options[1:])
        found[3:5] = gradients_of_constants(options, saved[:NUM_TENSORS], wanted, grad_output)
    return tuple(found)


_recomputed.register_autograd(_differentiate, setup_context=_save)


def recomputed_linear_cross_entropy(
    options: LinearLossOptions, chunk_rows: int | None, wants_token_weight: bool, *tensors: Tensor | None
) -> Tensor:
    """``tensors`` are those of :class:`LinearCrossEntropyFunction`."""
    loss: Tensor = _recomputed(*tensors, wants_token_weight, chunk_rows, *options)[0]
    return loss
