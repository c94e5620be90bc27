"""What language models and reinforcement learning ask of a row of logits: all of it from one sweep."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .operators.logit_transform import LogitTransform
from .operators.registration import call
from .operators.row_terms import row_terms
from .operators.token_statistics import composite, refusal, require_floating_point
from .route_log import note
from .routing import OVERRIDDEN, has_overrides, kernel_route, reason_for_torch, without_waiting_wrapper

__all__ = ["TokenStatistics", "token_statistics"]


class TokenStatistics(NamedTuple):
    """Of each row of logits, in the shape of the targets."""

    log_prob: Tensor
    """:math:`\\log \\operatorname{softmax}(x)_t`; 0 where the target is ignored."""
    log_sum_exp: Tensor
    """:math:`\\log \\sum_c \\exp x_c`."""
    entropy: Tensor
    """Of :math:`\\operatorname{softmax}(x)`, in nats."""
    argmax: Tensor
    """The first of the largest, int64. Logits that a softcap rounds to the same :math:`x` are still told apart."""


def token_statistics(
    logits: Tensor,
    target: Tensor,
    *,
    logit_scale: float = 1,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> TokenStatistics:
    r"""Log-probability of the target, log-sum-exp, entropy and argmax of each row of logits, in one sweep.

    .. math::
        x_c = s \tanh(a\, l_c / s), \quad
        \log p_t = x_t - \log \sum_c e^{x_c}, \quad
        H = - \sum_c p_c \log p_c

    with the logits :math:`l`, ``logit_scale`` :math:`a` and ``softcap`` :math:`s`; without a softcap :math:`x = a\, l`.
    A temperature :math:`T` is ``logit_scale=1 / T``. The first three results can be differentiated, together or alone;
    the backward is one more sweep over the logits.

    Args:
        logits: the class axis last; float32, float64, bfloat16 or float16; rows of any stride.
        target: class indices: int64, int32 or uint8; of other integers by torch's operators.
        logit_scale: a finite number other than 0.
        softcap: a positive number, or ``None``.
        ignore_index: the target without a log-probability. Its row has all the other statistics.

    Shape:
        - logits: :math:`(\dots, V)`.
        - target and every result: :math:`(\dots)`.

    Returns:
        float32 results, or float64 of float64 logits, and the int64 ``argmax``.

    Raises:
        IndexError: a target is neither in :math:`[0, V)` nor ``ignore_index``.
        ValueError: ``softcap`` or ``logit_scale`` is out of range, targets are no integers, or shapes do not fit.
        TypeError: one of these two is a tensor.
        NotImplementedError: the logits are of no floating-point type.

    Where a mode or a subclass overrides torch's functions, torch's own operators compute the same.

    Source: softcap as in `Gemma 2 <https://arxiv.org/abs/2408.00118>`_; derivatives: ``csrc/core/token_statistics.h``.
    """
    options = _checked_options(logits, target, logit_scale, softcap, ignore_index)
    logits = without_waiting_wrapper(logits)
    reason = _against_kernel(logits, target, options)
    if reason is None:
        note("token_statistics", kernel_route())
        log_prob, log_sum_exp, entropy, argmax, _ = call("token_statistics", logits, target, *options)
        return TokenStatistics(log_prob, log_sum_exp, entropy, argmax)
    note("token_statistics", f"torch: {reason}")
    log_prob, log_sum_exp, entropy = composite(options, logits, target)
    with torch.no_grad():
        argmax = LogitTransform(*options[:2]).argmax(logits)
    return TokenStatistics(log_prob, log_sum_exp, entropy, argmax)


def reason_against_token_statistics(
    logits: Tensor, target: Tensor, *, logit_scale: float, softcap: float | None, ignore_index: int
) -> str | None:
    """Why torch's operators compute this call of :func:`token_statistics`, or ``None``."""
    options = _checked_options(logits, target, logit_scale, softcap, ignore_index)
    return _against_kernel(without_waiting_wrapper(logits), target, options)


def _checked_options(
    logits: Tensor, target: Tensor, logit_scale: float, softcap: float | None, ignore_index: int
) -> tuple[float, float, int]:
    terms = row_terms(logit_scale, softcap, 0.0, 0.0)
    if logits.dim() == 0 or target.shape != logits.shape[:-1]:
        raise ValueError(
            f"Expected target of shape {list(logits.shape[:-1])} for logits of shape {list(logits.shape)}, "
            f"got {list(target.shape)}"
        )
    if target.dtype == torch.bool or target.is_floating_point() or target.is_complex():
        raise ValueError(f"targets must be class indices, not {target.dtype}")
    require_floating_point(logits)
    return terms.logit_scale, terms.softcap, ignore_index


def _against_kernel(logits: Tensor, target: Tensor, options: tuple[float, float, int]) -> str | None:
    if has_overrides(logits, target):
        return OVERRIDDEN
    return reason_for_torch(logits, target) or refusal(logits, target, *options)
