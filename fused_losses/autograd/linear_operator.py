"""A reduced linear cross-entropy as one operator, for compiled graphs: loss and gradients of the whole layer.

The gradients are for ``grad_output`` 1, as in Note [Gradients of a linear loss]; a graph holds those that are wanted
until its backward multiplies them. Their type may not depend on the processor: a graph that was made on another one may
come from a cache. So large ones of bfloat16, which some processors' products come out in, are rounded to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..operators.class_axis import accumulation_dtype
from ..operators.linear_cross_entropy import LinearLossOptions, autocast_is_off, empty_gradients
from ..operators.registration import NONE
from ..route_log import COMPILED
from ..routing import may_be_differentiated_later, records_graph
from . import placement
from .backward import multiplied
from .first_derivative import first_derivative_only
from .linear_cross_entropy import gradients_of_constants
from .linear_problem import LinearProblem
from .linear_recomputed import NUM_TENSORS, recomputed_linear_cross_entropy

__all__ = ["linear_cross_entropy_in_a_graph"]


_FEWEST_ROUNDED = 1 << 20  # elements of the weight


def _held_dtype(input: Tensor, weight: Tensor) -> torch.dtype:
    is_rounded = placement.is_on_host(input) and input.dtype == torch.bfloat16 and weight.numel() >= _FEWEST_ROUNDED
    return input.dtype if is_rounded else accumulation_dtype(input.dtype)


@torch.library.custom_op("fused_losses::linear_cross_entropy_prepared", mutates_args=())
def _prepared(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    token_weight: Tensor | None,
    wanted: list[bool],
    chunk_rows: int | None,
    num_classes: int,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    logit_scale: float,
    softcap: float,
    lse_square_scale: float,
    loss_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scales = (label_smoothing, logit_scale, softcap, lse_square_scale)
    options = LinearLossOptions(num_classes, reduction, ignore_index, *scales, loss_dtype)
    tensors = (input, weight, bias, target, class_weight, token_weight)
    with torch.no_grad(), autocast_is_off(input.device.type):
        problem = LinearProblem(options, chunk_rows, *tensors)
        if any(wanted):
            loss, gradients, factor = problem.loss_and_gradients((wanted[0], wanted[1], wanted[2]))
            if factor is not None:
                gradients = [None if gradient is None else gradient.mul_(factor) for gradient in gradients]
        else:
            loss, gradients = problem.reduced(problem.losses()), [None, None, None]
        dtype = _held_dtype(input, weight)
        of_input, of_weight, of_bias = (
            input.new_empty(0, dtype=dtype) if gradient is None else gradient.to(dtype) for gradient in gradients
        )
    return loss.to(loss_dtype), of_input, of_weight, of_bias


@_prepared.register_fake
def _(input: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wanted, loss_dtype = others[3], others[-1]
    of_input, of_weight, of_bias = empty_gradients(input, weight, wanted, _held_dtype(input, weight))
    return input.new_empty((), dtype=loss_dtype), of_input, of_weight, of_bias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *gradients = output
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*gradients, *inputs[:NUM_TENSORS])
    ctx.wanted, *ctx.options = inputs[NUM_TENSORS:]
    ctx.dtype = inputs[0].dtype


@first_derivative_only("linear losses in a compiled graph")
def _differentiate(ctx: Any, saved: Any, grad_output: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad
    found: list[Tensor | None] = [None] * (NUM_TENSORS + 1 + len(ctx.options))
    if grad_output is not None:
        gradients = saved[:3]
        if any(needs and not wanted for needs, wanted in zip(needed, ctx.wanted, strict=False)):
            # Of a flag that was out of date, or of an exported graph.
            _, *gradients = _prepared(*saved[3:], list(needed[:3]), *ctx.options)
        for i, gradient in enumerate(gradients):
            if needed[i]:
                found[i] = multiplied(gradient, grad_output).to(ctx.dtype)
        options = LinearLossOptions(*ctx.options[1:])
        found[3:5] = gradients_of_constants(options, saved[3:], needed, grad_output)
    return tuple(found)


_prepared.register_autograd(_differentiate, setup_context=_save)


def linear_cross_entropy_in_a_graph(
    options: LinearLossOptions, chunk_rows: int | None, *tensors: Tensor | None
) -> Tensor:
    """``tensors`` are those of :class:`LinearCrossEntropyFunction`."""
    differentiates = records_graph()
    *wanted, wants_token_weight = (
        differentiates and tensor is not None and tensor.requires_grad for tensor in (*tensors[:3], tensors[5])
    )
    is_for_later = not any(wanted) and may_be_differentiated_later(COMPILED)
    if options.reduction == NONE or wants_token_weight or is_for_later:
        return recomputed_linear_cross_entropy(options, chunk_rows, wants_token_weight, *tensors)
    loss: Tensor = _prepared(*tensors, wanted, chunk_rows, *options)[0]
    return loss
