"""The losses of this package as operators, which graphs hold as they are: schemas, fakes, derivatives.

Note [Graphs of several processes]
An operator holds a whole call: what is wrong with it on this rank is found inside, at run time, so that a graph agrees
on errors as a plain call does, and what eager mode computes is what a graph computes, to the bit. Those that speak to
other ranks have an effect where torch knows such: a compiler that changed their order on one rank would leave all
waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..autograd.first_derivative import first_derivative_only
from ..operators.class_axis import accumulation_dtype
from ..operators.linear_cross_entropy import autocast_is_off, empty_gradients
from ..operators.logit_transform import LogitTransform
from ..operators.versions import check_versions, remember_versions
from .arguments import (
    check_linear,
    check_logits,
    check_options,
    check_vocab_start,
    class_weight_of_shard,
    error_of,
    group_of_name,
    stand_in,
)
from .loss import Kept, LossOptions, gradients_of_loss, gradients_of_sums, loss_and_kept
from .of_linear import Layer, gradients_of_layer, statistics_of_layer
from .shard import GradientsOfSums, gradient_of_shard
from .statistics import Vocabulary, statistics_of_logits

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

__all__ = ["cross_entropy", "linear_cross_entropy", "token_statistics"]

_OPTIONS = (
    "str group_name, SymInt? vocab_start, SymInt ignore_index, float label_smoothing, str reduction, "
    "float logit_scale, float? softcap, float lse_square_scale"
)
_KEPT = ", ".join(f"Tensor {name}" for name in Kept._fields)
_NUM_KEPT = len(Kept._fields)
_LOSS_AND_KEPT = f"({', '.join(['Tensor'] * (1 + _NUM_KEPT))})"
_first_derivative_only = first_derivative_only("losses of a vocabulary that is spread over ranks")


def _operator(name: str, schema: str, *, speaks: bool) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Of the function that computes it. See Note [Graphs of several processes]."""

    def register(function: Callable[..., Any]) -> CustomOpDef:
        operator = torch.library.custom_op(f"fused_losses::{name}", function, mutates_args=(), schema=schema)
        if speaks and hasattr(operator, "register_effect"):
            operator.register_effect(torch.library.EffectType.ORDERED)  # type: ignore[attr-defined]
        return operator

    return register


def _fake_kept(target: Tensor, dtype: torch.dtype) -> Kept:
    row = target.new_empty(target.numel(), dtype=dtype)
    return Kept(
        row_losses=row,
        log_sum_exp=torch.empty_like(row),
        target_weight=torch.empty_like(row),
        saved=row.new_empty(4, target.numel()),
        local_target=torch.empty_like(row, dtype=torch.int64),
        counts=torch.empty_like(row, dtype=torch.bool),
        totals=row.new_empty(2),
    )


def _fake_loss(target: Tensor, dtype: torch.dtype, options: tuple[Any, ...]) -> tuple[Tensor, ...]:
    sizes = target.shape if LossOptions(*options).reduction == "none" else ()
    return (target.new_empty(sizes, dtype=dtype), *_fake_kept(target, dtype))


def _or_nothing(gradient: Tensor | None, like: Tensor) -> Tensor:
    """Operators return tensors alone."""
    return like.new_empty(0) if gradient is None else gradient


def _empty_like(token_weight: Tensor | None, otherwise: Tensor) -> Tensor:
    """The fake of its gradient, which is computed wherever there is one."""
    return otherwise.new_empty(0) if token_weight is None else token_weight.new_empty(token_weight.shape)


def _save_loss(num_tensors: int, num_read: int) -> Callable[[Any, tuple[Any, ...], tuple[Tensor, ...]], None]:
    """Of an operator that takes so many tensors before its options, the first of which the backward reads again."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, *kept = output
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        remember_versions(Kept(*kept).saved, *inputs[:num_read])
        ctx.save_for_backward(*inputs[:num_tensors], *kept)
        ctx.options = inputs[num_tensors:]

    return save


def _refuse_weight(ctx: Any, index: int) -> None:
    """Of a graph, which hides from the operator that its arguments require gradients."""
    if ctx.needs_input_grad[index]:
        raise ValueError("weight cannot be differentiated")


# Cross-entropy of logits


@_operator(
    "vocab_parallel_cross_entropy",
    f"(Tensor logits, Tensor target, Tensor? weight, Tensor? token_weight, {_OPTIONS}) -> {_LOSS_AND_KEPT}",
    speaks=True,
)
def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, token_weight: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    asked = LossOptions(*options)
    error = error_of(
        lambda: check_logits(logits, target, weight),
        lambda: check_options(target, token_weight, *asked.checked),
        lambda: check_vocab_start(asked.vocab_start),
    )
    rows, indices = (logits, target.reshape(-1).long()) if error is None else stand_in(target, logits.dtype)
    class_weight = class_weight_of_shard(weight, rows.size(-1), logits.dtype)
    with autocast_is_off(logits.device.type):
        statistics = statistics_of_logits(rows, indices, asked.vocabulary(rows.size(-1), class_weight), error)
        loss, kept = loss_and_kept(statistics, token_weight, target.shape, asked)
    return (loss, *kept)


@cross_entropy.register_fake
def _(logits: Tensor, target: Tensor, weight: Any, token_weight: Any, *options: Any) -> tuple[Tensor, ...]:
    return _fake_loss(target, accumulation_dtype(logits.dtype), options)


@_operator(
    "vocab_parallel_cross_entropy_backward",
    f"(Tensor grad_output, Tensor logits, Tensor? weight, Tensor? token_weight, {_KEPT}, bool wants_logits, {_OPTIONS})"
    " -> (Tensor, Tensor)",
    speaks=False,
)
def _cross_entropy_backward(
    grad_output: Tensor, logits: Tensor, weight: Tensor | None, token_weight: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor]:
    kept, wants_logits, asked = Kept(*others[:_NUM_KEPT]), others[_NUM_KEPT], LossOptions(*others[_NUM_KEPT + 1 :])
    gradients, of_token_weight = gradients_of_loss(grad_output, kept, token_weight, asked)
    of_logits = None
    if wants_logits:
        class_weight = class_weight_of_shard(weight, logits.size(-1), logits.dtype)
        of_logits = gradient_of_shard(gradients, logits, kept.local_target, kept.saved, asked.transform, class_weight)
    return _or_nothing(of_logits, logits), _or_nothing(of_token_weight, logits)


@_cross_entropy_backward.register_fake
def _(grad_output: Tensor, logits: Tensor, weight: Any, token_weight: Tensor | None, *others: Any) -> tuple[Any, Any]:
    of_logits = logits.new_empty(logits.shape) if others[_NUM_KEPT] else logits.new_empty(0)
    return of_logits, _empty_like(token_weight, logits)


@_first_derivative_only
def _differentiate(ctx: Any, saved: Any, grad_output: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    _refuse_weight(ctx, 2)
    found: list[Tensor | None] = [None] * (4 + len(ctx.options))
    if grad_output is None:
        return tuple(found)
    logits, _target, weight, token_weight, *kept = saved
    check_versions(Kept(*kept).saved, logits)
    wants_logits, *_, wants_token_weight = ctx.needs_input_grad[:4]
    of_logits, of_token_weight = _cross_entropy_backward(
        grad_output, logits, weight, token_weight, *kept, wants_logits, *ctx.options
    )
    found[0] = of_logits if wants_logits else None
    found[3] = of_token_weight if wants_token_weight else None
    return tuple(found)


cross_entropy.register_autograd(_differentiate, setup_context=_save_loss(4, 1))


# Cross-entropy of a linear layer


@_operator(
    "vocab_parallel_linear_cross_entropy",
    "(Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? weight, Tensor? token_weight, "
    f"bool reduce_input_gradient, {_OPTIONS}) -> {_LOSS_AND_KEPT}",
    speaks=True,
)
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    token_weight: Tensor | None,
    reduce_input_gradient: bool,
    *options: Any,
) -> tuple[Tensor, ...]:
    asked = LossOptions(*options)
    error = error_of(
        lambda: check_linear(input, linear_weight, linear_bias, target, weight),
        lambda: check_options(target, token_weight, *asked.checked),
        lambda: check_vocab_start(asked.vocab_start),
    )
    if error is None:
        layer, indices = Layer.of(input, linear_weight, linear_bias), target.reshape(-1).long()
    else:
        hidden, indices = stand_in(target, input.dtype)
        layer = Layer(hidden, hidden.new_empty(0, 0), None)
    num_classes = layer.weight.size(0)
    vocabulary = asked.vocabulary(num_classes, class_weight_of_shard(weight, num_classes, input.dtype))
    with autocast_is_off(input.device.type):
        statistics = statistics_of_layer(layer, indices, vocabulary, error)
        loss, kept = loss_and_kept(statistics, token_weight, target.shape, asked)
    return (loss, *kept)


@linear_cross_entropy.register_fake
def _(input: Tensor, weight: Any, bias: Any, target: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return _fake_loss(target, accumulation_dtype(input.dtype), others[3:])


@_operator(
    "vocab_parallel_linear_cross_entropy_backward",
    "(Tensor grad_output, Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor? weight, "
    f"Tensor? token_weight, {_KEPT}, bool[3] wanted, bool reduce_input_gradient, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    speaks=True,
)
def _linear_cross_entropy_backward(
    grad_output: Tensor,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    token_weight: Tensor | None,
    *others: Any,
) -> tuple[Tensor, ...]:
    kept, (wanted, reduces, *options) = Kept(*others[:_NUM_KEPT]), others[_NUM_KEPT:]
    asked = LossOptions(*options)
    num_classes = linear_weight.size(0)
    vocabulary = asked.vocabulary(num_classes, class_weight_of_shard(weight, num_classes, input.dtype))
    with autocast_is_off(input.device.type):
        gradients, of_token_weight = gradients_of_loss(grad_output, kept, token_weight, asked)
        of_layer = gradients_of_layer(
            Layer.of(input, linear_weight, linear_bias),
            gradients,
            kept.local_target,
            kept.saved,
            vocabulary,
            wanted,
            reduces,
        )
    of_input, *of_parameters = (_or_nothing(gradient, input) for gradient in of_layer)
    return of_input.view(input.shape if wanted[0] else (0,)), *of_parameters, _or_nothing(of_token_weight, input)


@_linear_cross_entropy_backward.register_fake
def _(
    grad_output: Tensor,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    token_weight: Tensor | None,
    *others: Any,
) -> tuple[Tensor, ...]:
    return *empty_gradients(input, linear_weight, others[_NUM_KEPT]), _empty_like(token_weight, input)


@_first_derivative_only
def _differentiate_linear(ctx: Any, saved: Any, grad_output: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    _refuse_weight(ctx, 4)
    found: list[Tensor | None] = [None] * (6 + len(ctx.options))
    if grad_output is None:
        return tuple(found)
    *layer, _target, weight, token_weight = saved[:6]
    kept, wanted = saved[6:], list(ctx.needs_input_grad[:3])
    check_versions(Kept(*kept).saved, *layer)
    *of_layer, of_token_weight = _linear_cross_entropy_backward(
        grad_output, *layer, weight, token_weight, *kept, wanted, *ctx.options
    )
    for i in range(3):
        found[i] = of_layer[i] if wanted[i] else None
    found[5] = of_token_weight if ctx.needs_input_grad[5] else None
    return tuple(found)


linear_cross_entropy.register_autograd(_differentiate_linear, setup_context=_save_loss(6, 3))


# Statistics of tokens

_STATISTICS_OPTIONS = "str group_name, SymInt? vocab_start, SymInt ignore_index, float logit_scale, float? softcap"


@_operator(
    "vocab_parallel_token_statistics",
    f"(Tensor logits, Tensor target, {_STATISTICS_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor saved, Tensor local_target, Tensor counts)",
    speaks=True,
)
def token_statistics(
    logits: Tensor,
    target: Tensor,
    group_name: str,
    vocab_start: int | None,
    ignore_index: int,
    logit_scale: float,
    softcap: float | None,
) -> tuple[Tensor, ...]:
    error = error_of(
        lambda: check_logits(logits, target, None),
        lambda: check_options(target, None, logit_scale, softcap),
        lambda: check_vocab_start(vocab_start),
    )
    rows, indices = (logits, target.reshape(-1).long()) if error is None else stand_in(target, logits.dtype)
    vocabulary = Vocabulary(
        group=group_of_name(group_name),
        num_classes=rows.size(-1),
        vocab_start=vocab_start,
        class_weight=None,
        transform=LogitTransform(logit_scale, softcap or 0.0),
        ignore_index=ignore_index,
        wants_entropy=True,
        wants_argmax=True,
    )
    found = statistics_of_logits(rows, indices, vocabulary, error)
    results = (found.log_prob, found.log_sum_exp, found.entropy, found.argmax)
    return (*(result.view(target.shape) for result in results), found.saved, found.local_target, found.counts)


@token_statistics.register_fake
def _(logits: Tensor, target: Tensor, *options: Any) -> tuple[Tensor, ...]:
    dtype = accumulation_dtype(logits.dtype)
    kept = _fake_kept(target, dtype)
    results = (target.new_empty(target.shape, dtype=of) for of in (dtype, dtype, dtype, torch.int64))
    return (*results, kept.saved, kept.local_target, kept.counts)


@_operator(
    "vocab_parallel_token_statistics_backward",
    "(Tensor? grad_log_prob, Tensor? grad_log_sum_exp, Tensor? grad_entropy, Tensor logits, Tensor saved, "
    "Tensor local_target, Tensor counts, float logit_scale, float? softcap) -> Tensor",
    speaks=False,
)
def _token_statistics_backward(
    grad_log_prob: Tensor | None,
    grad_log_sum_exp: Tensor | None,
    grad_entropy: Tensor | None,
    logits: Tensor,
    saved: Tensor,
    local_target: Tensor,
    counts: Tensor,
    logit_scale: float,
    softcap: float | None,
) -> Tensor:
    grads = (grad_log_prob, grad_log_sum_exp, grad_entropy)
    of_log_prob, of_log_sum_exp, of_entropy = (None if grad is None else grad.reshape(-1) for grad in grads)
    of_rows = GradientsOfSums(of_log_prob, of_log_sum_exp, of_entropy, weighted=None)
    gradients = gradients_of_sums(of_rows, saved, local_target, counts)
    transform = LogitTransform(logit_scale, softcap or 0.0)
    return gradient_of_shard(gradients, logits, local_target, saved, transform, None)


@_token_statistics_backward.register_fake
def _(of_log_prob: Any, of_log_sum_exp: Any, of_entropy: Any, logits: Tensor, *others: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _save_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[3:])
    ctx.set_materialize_grads(False)
    remember_versions(output[4], inputs[0])
    ctx.save_for_backward(inputs[0], *output[4:])
    ctx.transform = inputs[-2:]


@_first_derivative_only
def _differentiate_statistics(ctx: Any, saved: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = grad_outputs[:3]
    gradient = None
    if any(grad is not None for grad in grads):
        check_versions(saved[1], saved[0])
        gradient = _token_statistics_backward(*grads, *saved, *ctx.transform)
    return (gradient, None, None, None, None, None, None)


token_statistics.register_autograd(_differentiate_statistics, setup_context=_save_statistics)
