"""TRL: ``selective_log_softmax``, ``entropy_from_logits`` and both at once from one sweep, in all of its trainers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from trl.trainer import utils

from .. import trl_functions
from ..held_functions import exchange_everywhere

__all__ = [
    "disable",
    "enable",
    "entropy_from_logits",
    "is_enabled",
    "selective_log_softmax",
    "selective_log_softmax_and_entropy",
]

# What stands for TRL's functions are functions of this module, so that disable() finds no other holder of ours.


def selective_log_softmax(
    logits: Tensor, index: Tensor, temperature: float = 1.0, row_mask: Tensor | None = None
) -> Tensor:
    """TRL's function of this name: see :func:`fused_losses.functional.selective_log_softmax`."""
    return trl_functions.selective_log_softmax(logits, index, temperature, row_mask)


def selective_log_softmax_and_entropy(
    logits: Tensor,
    index: Tensor,
    entropy_requires_grad: bool = True,
    temperature: float = 1.0,
    row_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """TRL's function of this name: see :func:`fused_losses.functional.selective_log_softmax_and_entropy`."""
    return trl_functions.selective_log_softmax_and_entropy(logits, index, entropy_requires_grad, temperature, row_mask)


def entropy_from_logits(logits: Tensor, chunk_size: int = 128) -> Tensor:
    """TRL's function of this name: see :func:`fused_losses.functional.entropy_from_logits`."""
    return trl_functions.entropy_from_logits(logits, chunk_size)


# An older TRL has no function for both at once.
_PAIRS: list[tuple[Any, Any]] = [
    (getattr(utils, function.__name__), function)
    for function in (selective_log_softmax, entropy_from_logits, selective_log_softmax_and_entropy)
    if hasattr(utils, function.__name__)
]


def enable() -> None:
    """Replace these functions in TRL, and in every loaded module that imported them by name.

    TRL's own Triton kernels, where they would serve, are bypassed. May be called any number of times.
    """
    exchange_everywhere(_PAIRS)


def disable() -> None:
    """Undo :func:`enable`, also in modules that were imported since."""
    exchange_everywhere((ours, stock) for stock, ours in _PAIRS)


def is_enabled() -> bool:
    """Whether TRL's functions are the fused ones now."""
    return utils.selective_log_softmax is selective_log_softmax
