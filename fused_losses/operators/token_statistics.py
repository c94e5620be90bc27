"""What torch must know of the operators of the statistics of tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._cuda import is_cuda_available
from ..torch_losses import torch_function
from .batching import batch_first
from .class_axis import FLOAT_DTYPES, INDEX_DTYPES, accumulation_dtype, is_counted, refusal_of_ignore_index
from .composite import differentiable_gradient, needed_gradients, pulled_back
from .logit_transform import LogitTransform, refusal_of_scales
from .registration import Operator, call
from .versions import check_versions, remember_versions

_Options = tuple[float, float, int]  # logit_scale, softcap (0: none), ignore_index
NUM_SAVED = 4  # for each row, of what the backward needs
_HAS_CUDA = is_cuda_available()


def require_floating_point(input: Tensor) -> None:
    """Of logits, or of what they are computed of: a conversion would lose the imaginary part of a complex number."""
    if not input.is_floating_point():
        raise NotImplementedError(f"statistics of tokens are not implemented for an input of {input.dtype}")


def refusal(logits: Tensor, target: Tensor, logit_scale: float, softcap: float, ignore_index: int) -> str | None:
    """Why the kernels do not compute these statistics, or ``None``."""
    if not (logits.is_cpu or (_HAS_CUDA and logits.is_cuda)):
        return "there are no kernels for tokens on this device"
    if logits.dtype not in FLOAT_DTYPES or logits.dim() == 0:
        return "the logits are no floating-point tensor with a class axis"
    if target.dtype not in INDEX_DTYPES or target.shape != logits.shape[:-1]:
        return "the targets are no class indices in the shape of the logits without their last axis"
    return refusal_of_ignore_index(ignore_index) or refusal_of_scales(logits, logit_scale, softcap)


def composite(options: _Options, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability, log-sum-exp and entropy by torch's own operators, in the type of computation."""
    logit_scale, softcap, ignore_index = options
    x = LogitTransform(logit_scale, softcap).transformed(logits.to(accumulation_dtype(logits.dtype)))
    log_p = torch.log_softmax(x, -1)
    rows, index = log_p.reshape(target.numel(), logits.shape[-1]), target.long().flatten()
    # An index out of bounds is the IndexError of losses, and not gather's RuntimeError.
    losses = torch_function("nll_loss")(rows, index, ignore_index=ignore_index, reduction="none")
    log_prob = torch.where(is_counted(target, ignore_index), -losses.reshape(target.shape), 0)
    p = log_p.exp()
    entropy = -(p * torch.where(p == 0, 0, log_p)).sum(-1)  # masked classes: 0 times -inf counts 0
    return log_prob, torch.logsumexp(x, -1), entropy


def _fake(
    logits: Tensor, target: Tensor, logit_scale: float, softcap: float, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(logits.dtype)
    sizes = logits.shape[:-1]
    log_prob, log_sum_exp, entropy = (logits.new_empty(sizes, dtype=dtype) for _ in range(3))
    argmax = logits.new_empty(sizes, dtype=torch.int64)
    return log_prob, log_sum_exp, entropy, argmax, logits.new_empty((NUM_SAVED, math.prod(sizes)), dtype=dtype)


def _fake_backward(
    grad_log_prob: Tensor | None,
    grad_log_sum_exp: Tensor | None,
    grad_entropy: Tensor | None,
    logits: Tensor,
    *others: Any,
) -> Tensor:
    return logits.new_empty(logits.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, *options = inputs
    *_, argmax, saved = output
    ctx.mark_non_differentiable(argmax, saved)
    ctx.set_materialize_grads(False)
    remember_versions(saved, logits)
    ctx.save_for_backward(logits, target, saved)
    ctx.options = tuple(options)


def _differentiate(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = grad_outputs[:3]
    if all(grad is None for grad in grads):
        return (None,) * 5
    logits, target, saved = ctx.saved_tensors
    check_versions(saved, logits)
    gradient = call("token_statistics_backward", *grads, logits, target, saved, *ctx.options)
    return (gradient, None, None, None, None)


def _differentiate_backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
    """Through torch's own operators. What was saved depends on the logits, whose part has it all."""
    *grads, logits, target, _ = ctx.saved_tensors
    given = [i for i, grad in enumerate(grads) if grad is not None]

    def gradient(*aliases: Any) -> Tensor:
        *grads, x = aliases

        def results(x: Tensor) -> tuple[Tensor, ...]:
            of_logits = composite(ctx.options, x, target)
            return tuple(of_logits[i] for i in given)

        dtype = accumulation_dtype(x.dtype)
        return differentiable_gradient(results, x, tuple(grads[i].to(dtype) for i in given))

    tensors = (*grads, logits)
    found = pulled_back(gradient, tensors, needed_gradients(ctx, tensors), direction)
    return (*found, None, None, None, None, None)


def _batch(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
    logits, target, *options = arguments
    logits, target = (batch_first(tensor, info, dim) for tensor, dim in zip((logits, target), in_dims, strict=False))
    *results, saved = call("token_statistics", logits, target, *options)
    return (*results, saved.view(NUM_SAVED, info.batch_size, -1)), (0, 0, 0, 0, 1)


def _batch_backward(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
    *tensors, saved, logit_scale, softcap, ignore_index = arguments
    stacks = [
        None if tensor is None else batch_first(tensor, info, dim)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]
    saved_first = batch_first(saved, info, in_dims[5])
    saved = saved_first.movedim(0, 1).flatten(1).contiguous()
    return call("token_statistics_backward", *stacks, saved, logit_scale, softcap, ignore_index), 0


OPERATORS = {
    "token_statistics": Operator(fake=_fake, derivative=_differentiate, save=_save, batch=_batch),
    "token_statistics_backward": Operator(
        fake=_fake_backward, derivative=_differentiate_backward, batch=_batch_backward, num_linear=3
    ),
}
