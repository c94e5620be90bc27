"""TRL: heads without logits, ``selective_log_softmax``, ``entropy_from_logits``, both at once, in its trainers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from trl.trainer import utils

from .. import trl_functions
from ..held_functions import exchange_everywhere
from .trl_heads import head_function

__all__ = [
    "disable",
    "enable",
    "entropy_from_logits",
    "is_enabled",
    "selective_log_softmax",
    "selective_log_softmax_and_entropy",
]

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def _in_trl(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """A function of this module that stands for TRL's of this name, so that disable() finds no other holder of ours."""

    @functools.wraps(function)
    def standing_in(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        return function(*args, **kwargs)

    standing_in.__module__ = __name__
    standing_in.__doc__ = f"TRL's function of this name: see :func:`fused_losses.functional.{function.__name__}`."
    return standing_in


selective_log_softmax = _in_trl(trl_functions.selective_log_softmax)
selective_log_softmax_and_entropy = _in_trl(trl_functions.selective_log_softmax_and_entropy)
entropy_from_logits = _in_trl(trl_functions.entropy_from_logits)

# An older TRL has no function for both at once.
_PAIRS: list[tuple[Any, Any]] = [
    (getattr(utils, function.__name__), function)
    for function in (selective_log_softmax, entropy_from_logits, selective_log_softmax_and_entropy)
    if hasattr(utils, function.__name__)
]
# Nor has it a head that makes no logits.
if hasattr(utils, "_ChunkedLogProbFunction"):
    _PAIRS.append((utils._ChunkedLogProbFunction, head_function(utils._ChunkedLogProbFunction)))


def enable() -> None:
    """Replace these functions in TRL, and in every loaded module that imported them by name.

    In TRL 1.16 the trainers of DPO, GRPO, KTO, RLOO and SFT ask a head that makes no logits for its
    log-probabilities: :func:`fused_losses.functional.linear_token_statistics` computes them, also in trainers that
    there are already. TRL's own Triton kernels, where they would serve, are bypassed. May be called any number of
    times.
    """
    exchange_everywhere(_PAIRS)


def disable() -> None:
    """Undo :func:`enable`, also in modules that were imported since."""
    exchange_everywhere((ours, stock) for stock, ours in _PAIRS)


def is_enabled() -> bool:
    """Whether TRL's functions are the fused ones now."""
    return utils.selective_log_softmax is selective_log_softmax
