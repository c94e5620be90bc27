"""The operators of the statistics of tokens by torch's own, for tensors that there are no kernels for.

They make tensors of the logits' size, as the kernels do not. The mathematics is in ``csrc/core/token_statistics.h``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators.class_axis import accumulation_dtype
from ..operators.logit_transform import LogitTransform

__all__ = ["token_gradient", "token_sums"]


def token_sums(
    logits: Tensor, target: Tensor, logit_scale: float, softcap: float, ignore_index: int
) -> tuple[Tensor, ...]:
    """log_prob, log_sum_exp, entropy, argmax and saved, as ``token_statistics`` of [N, V] logits."""
    transform = LogitTransform(logit_scale, softcap)
    factor, sign = transform.factor, transform.sign
    unit = transform.unit(logits.to(accumulation_dtype(logits.dtype)))
    shift = (unit * sign).amax(1) * sign
    if not softcap:
        shift = torch.where(shift * sign == -torch.inf, 0, shift)
    z = (unit - shift.unsqueeze(1)) * factor
    exponential = z.exp()
    total = exponential.sum(1)
    times_x = (exponential * torch.where(exponential == 0, 0, z)).sum(1)
    counts = target != ignore_index
    index = torch.where(counts, target, 0).unsqueeze(1)
    target_exponential = exponential.gather(1, index).squeeze(1)
    others = torch.where(counts, exponential.scatter(1, index, 0).sum(1), total)
    total = torch.where(counts, others + target_exponential, total)
    log_sum = total.log()
    log_prob = torch.where(counts, z.gather(1, index).squeeze(1) - log_sum, 0)
    log_sum_exp = (unit * factor).logsumexp(1)
    saved = torch.stack((shift, total, others, times_x))
    return log_prob, log_sum_exp, log_sum - times_x / total, (unit * sign).argmax(1), saved


def token_gradient(
    grads: tuple[Tensor | None, ...],
    logits: Tensor,
    target: Tensor,
    saved: Tensor,
    logit_scale: float,
    softcap: float,
    ignore_index: int,
) -> Tensor:
    """As ``token_statistics_backward`` of [N, V] logits."""
    transform = LogitTransform(logit_scale, softcap)
    shift, total, others, times_x = saved
    counts = target != ignore_index
    grad_log_prob, grad_log_sum_exp, grad_entropy = (
        torch.zeros_like(total) if grad is None else grad.to(total.dtype) for grad in grads
    )
    grad_log_prob = torch.where(counts, grad_log_prob, 0)
    unit = transform.unit(logits.to(accumulation_dtype(logits.dtype)))
    z = (unit - shift.unsqueeze(1)) * transform.factor
    probability = z.exp() / total.unsqueeze(1)
    z = torch.where(probability == 0, 0, z)
    constant = (grad_log_sum_exp + grad_entropy * times_x / total).unsqueeze(1)
    of_every_class = constant - grad_entropy.unsqueeze(1) * z
    gradient = probability * (of_every_class - grad_log_prob.unsqueeze(1))
    index = torch.where(counts, target, 0).unsqueeze(1)
    # 1 - p_t = S' / S: see Note [Confident rows] in csrc/core/cross_entropy.h.
    at_target = (probability * of_every_class).gather(1, index) + (grad_log_prob * others / total).unsqueeze(1)
    at_target = torch.where(counts.unsqueeze(1), at_target, gradient.gather(1, index))
    gradient = gradient.scatter(1, index, at_target)
    has_gradient = (grad_log_prob != 0) | (grad_log_sum_exp != 0) | (grad_entropy != 0)
    return torch.where(has_gradient.unsqueeze(1), gradient * transform.derivative(unit), 0).to(logits.dtype)
