r"""The statistics of tokens by TRL's names, with its arguments, shapes and types."""

from __future__ import annotations

import torch
from torch import Tensor

from .operators.class_axis import NO_INDEX
from .tokens import TokenStatistics, token_statistics

__all__ = ["entropy_from_logits", "selective_log_softmax", "selective_log_softmax_and_entropy"]


def selective_log_softmax(
    logits: Tensor, index: Tensor, temperature: float = 1, row_mask: Tensor | None = None
) -> Tensor:
    r"""``log_softmax(logits / temperature, -1).gather(-1, index)`` without the tensor of log-probabilities.

    Args:
        logits: the class axis last.
        index: classes, one a row or, with one axis more, several.
        temperature: positive; the logits are divided by it.
        row_mask: where it is zero the result is. Such a row of logits has a gradient of zeros, whatever is in it.

    Shape:
        - logits: :math:`(\dots, V)`.
        - index, row_mask and the result: :math:`(\dots)` or :math:`(\dots, K)`.

    Returns:
        Log-probabilities of the logits' type.

    Raises:
        IndexError: a class is not in :math:`[0, V)`; of several a row it is the RuntimeError of torch's ``gather``.
        ValueError: ``temperature`` is not positive.

    Source: the function of this name in TRL.
    """
    return _masked(_log_prob(logits, index, _statistics(logits, index, temperature), temperature), row_mask)


def selective_log_softmax_and_entropy(
    logits: Tensor,
    index: Tensor,
    entropy_requires_grad: bool = True,
    temperature: float = 1,
    row_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Both from one sweep: :func:`selective_log_softmax`, and the entropy of ``softmax(logits / temperature, -1)``.

    Args:
        logits: the class axis last.
        index: classes, one a row.
        entropy_requires_grad: whether the entropy is differentiated.
        temperature: positive; the logits are divided by it.
        row_mask: where it is zero both results are.

    Shape:
        - logits: :math:`(\dots, V)`.
        - index, row_mask and the results: :math:`(\dots)`.

    Returns:
        Log-probabilities and entropies of the logits' type.

    Raises:
        IndexError: a class is not in :math:`[0, V)`.
        ValueError: ``temperature`` is not positive.

    Source: the function of this name in TRL.
    """
    statistics = _statistics(logits, index, temperature)
    entropy = statistics.entropy if entropy_requires_grad else statistics.entropy.detach()
    log_prob = _log_prob(logits, index, statistics, temperature)
    return _masked(log_prob, row_mask), _masked(entropy.to(logits.dtype), row_mask)


def entropy_from_logits(logits: Tensor, chunk_size: int = 128) -> Tensor:
    r"""The entropy of ``softmax(logits, -1)`` in nats, without the tensor of probabilities.

    Args:
        logits: the class axis last.
        chunk_size: has no effect, since nothing of the logits' size is made.

    Shape:
        - logits: :math:`(\dots, V)`.
        - the result: :math:`(\dots)`.

    Returns:
        Entropies of the logits' type.

    Source: the function of this name in TRL.
    """
    return _without_target(logits, 1.0).entropy.to(logits.dtype)


def _statistics(logits: Tensor, index: Tensor, temperature: float) -> TokenStatistics:
    if temperature <= 0:
        raise ValueError("temperature must be positive")
    if _has_one_class(logits, index):
        return token_statistics(logits, index, logit_scale=1 / temperature, ignore_index=NO_INDEX)
    return _without_target(logits, temperature)


def _without_target(logits: Tensor, temperature: float) -> TokenStatistics:
    no_target = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    return token_statistics(logits, no_target, logit_scale=1 / temperature, ignore_index=0)


def _log_prob(logits: Tensor, index: Tensor, statistics: TokenStatistics, temperature: float) -> Tensor:
    if _has_one_class(logits, index):
        return statistics.log_prob.to(logits.dtype)
    log_sum_exp = statistics.log_sum_exp
    selected = logits.gather(-1, index).to(log_sum_exp.dtype)
    return (selected / temperature - log_sum_exp.unsqueeze(-1)).to(logits.dtype)


def _has_one_class(logits: Tensor, index: Tensor) -> bool:
    return index.dim() == logits.dim() - 1


def _masked(values: Tensor, row_mask: Tensor | None) -> Tensor:
    return values if row_mask is None else values.masked_fill(row_mask == 0, 0.0)
