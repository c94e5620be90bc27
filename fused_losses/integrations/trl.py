"""TRL: ``selective_log_softmax`` and ``entropy_from_logits`` from one sweep over the logits, in all of its trainers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from trl.trainer import utils

from .. import tokens
from ..held_functions import exchange_everywhere
from ..operators.class_axis import NO_INDEX
from ..tokens import token_statistics

__all__ = ["disable", "enable", "entropy_from_logits", "is_enabled", "selective_log_softmax"]

_stock_selective_log_softmax = utils.selective_log_softmax
_stock_entropy_from_logits = utils.entropy_from_logits


def selective_log_softmax(
    logits: Tensor, index: Tensor, temperature: float = 1.0, row_mask: Tensor | None = None
) -> Tensor:
    r"""TRL's function of this name.

    Args:
        logits: :math:`(\dots, V)`.
        index: classes, :math:`(\dots)` or :math:`(\dots, K)`.
        temperature: positive; the logits are divided by it.
        row_mask: of the index's shape; where it is zero the result is.

    Returns:
        Log-probabilities of the logits' type.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    if temperature <= 0:
        raise ValueError("temperature must be positive")
    if index.dim() == logits.dim() - 1:
        log_prob = token_statistics(logits, index, logit_scale=1 / temperature, ignore_index=NO_INDEX).log_prob
        log_prob = log_prob.to(logits.dtype)
    else:
        log_prob = tokens.selective_log_softmax(logits if temperature == 1 else logits / temperature, index)
    return log_prob if row_mask is None else log_prob.masked_fill(row_mask == 0, 0.0)


def entropy_from_logits(logits: Tensor, chunk_size: int = 128) -> Tensor:
    """TRL's function of this name: see :func:`fused_losses.functional.entropy_from_logits`."""
    return tokens.entropy_from_logits(logits, chunk_size)


_PAIRS: list[tuple[Any, Any]] = [
    (_stock_selective_log_softmax, selective_log_softmax),
    (_stock_entropy_from_logits, entropy_from_logits),
]


def enable() -> None:
    """Replace the two functions in TRL, and in every loaded module that imported them by name.

    TRL's own Triton kernels, where they would serve, are bypassed. May be called any number of times.
    """
    exchange_everywhere(_PAIRS)


def disable() -> None:
    """Undo :func:`enable`, also in modules that were imported since."""
    exchange_everywhere((ours, stock) for stock, ours in _PAIRS)


def is_enabled() -> bool:
    """Whether TRL's functions are the fused ones now."""
    return utils.selective_log_softmax is selective_log_softmax
