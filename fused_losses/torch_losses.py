"""Torch's own loss functions, whatever stands in their place in :mod:`torch.nn.functional` by now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "LINEAR_CROSS_ENTROPY",
    "NAMES",
    "PATCHED_NAMES",
    "is_replacement",
    "mark_as_replacement",
    "original_of",
    "torch_function",
]

NAMES = ("binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy", "nll_loss")
LINEAR_CROSS_ENTROPY = "linear_cross_entropy"  # not in every torch
PATCHED_NAMES = (*NAMES, LINEAR_CROSS_ENTROPY) if hasattr(F, LINEAR_CROSS_ENTROPY) else NAMES

# On each of our functions: torch's function that it replaces. It outlives a reload of any module.
_MARK = "__fused_losses_original__"


def original_of(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """Torch's function where ``function`` is one of ours, else ``function`` itself."""
    original: Callable[..., Tensor] = getattr(function, _MARK, function)
    return original


def is_replacement(function: Callable[..., Any]) -> bool:
    """Whether it is one of ours, also one of before a module was loaded again."""
    return hasattr(function, _MARK)


def torch_function(name: str) -> Callable[..., Tensor]:
    """The loss that torch itself has under this name."""
    return original_of(getattr(F, name))


def mark_as_replacement(function: Callable[..., Any], original: Callable[..., Tensor]) -> None:
    """Let ``function`` be known as the replacement of ``original``, also to :func:`torch.jit.script`.

    After ``patch()`` scripting meets ``function`` and compiles what ``__prepare_scriptable__`` returns in its place.
    """
    vars(function).update({_MARK: original, "__prepare_scriptable__": lambda: original})
