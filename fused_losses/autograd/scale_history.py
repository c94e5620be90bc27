"""What the backward of a loss asked for the last time, so that its forward prepares that gradient the next time.

Note [Expected grad_output]
A loss that is scaled before its backward (``loss / steps``, GradScaler, ``sum / num_items``, a weight in a sum of
losses) asks for ``grad_output`` times the gradient for 1: another sweep over it, and in 16 bits another computation. So
the forward computes the gradient for the ``grad_output`` that the last backward of such a loss had. Where that changes
with every step a prepared gradient is lost work: the forward then leaves statistics, and the backward computes. What is
expected decides which of two ways is taken; the bits of the result are the same on both, and on the way back from a
wrong guess. Small losses are always prepared, for what was asked for last: it is small, too, what a wrong guess costs
there, and a prepared gradient alone survives that the logits are modified between forward and backward. A large loss of
which that is seen is always prepared from then on. On a GPU small losses are prepared for 1, and nothing is remembered
of them.

Note [Told by the device]
Of a ``grad_output`` on a GPU the host learns without waiting: the device copies it to pinned memory when it comes to
it, and a later forward finds it there. How late that is decides about the way alone, as everything here does. As every
copy stands in the device's queue, it is asked until it has told four, and then in one backward of 17: a prime number,
so that of losses that take turns each comes up.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import placement

__all__ = ["FOR_ONE", "Expectation", "expectation_of"]

_TINY_ELEMENTS = 1 << 10  # so few that a key of their shape would be seen in the time of a call
_SMALL_ELEMENTS = 1 << 16
_SMALL_ELEMENTS_ON_DEVICE = 1 << 22  # a sweep over them is hardly longer than the copy of grad_output
_FIRST_ANSWERS = 4
_BACKWARDS_BETWEEN_QUESTIONS = 17
_MOST_LOSSES = 256  # that are remembered; a program has a few


class Expectation:
    """Of the losses of one kind: prepared for the last scale, unless that changed twice in a row."""

    __slots__ = ("_always_prepares", "_changes", "_last", "_remembers")

    def __init__(self, remembers: bool = True, always_prepares: bool = False) -> None:
        self._remembers = remembers
        self._last = 1.0
        self._changes = 0
        self._always_prepares = always_prepares

    @property
    def grad_output(self) -> float | None:
        """What the forward should compute the gradient for; nothing where the backward should compute it."""
        return self._last if self._changes < 2 or self._always_prepares else None

    def observe(self, grad_output: float) -> None:
        if not self._remembers:
            return
        if grad_output == self._last:
            self._changes = 0
        elif math.isfinite(grad_output) and grad_output != 0:
            self._last = grad_output
            self._changes += 1

    def observe_modified_input(self) -> None:
        """The input was modified before the backward, which only a prepared gradient survives."""
        self._always_prepares = True

    def observe_other_use(self) -> None:
        """The backward was differentiated, batched or watched: it took no prepared gradient."""
        if self._remembers:
            self._changes = 2


class DeviceExpectation(Expectation):
    """See Note [Told by the device]."""

    __slots__ = ("_answers", "_backwards", "_told")

    def __init__(self) -> None:
        super().__init__()
        self._answers = 0
        self._backwards = 0
        self._told: Tensor | None = None  # pinned; not a number where there is nothing new

    @property
    def grad_output(self) -> float | None:
        told = self._told
        if told is not None and not math.isnan(value := told.item()):
            told.fill_(math.nan)
            self._answers += 1
            self.observe(value)
        return super().grad_output

    def observe_on_device(self, grad_output: Tensor) -> None:
        """Lets the device tell its value when it comes to it."""
        self._backwards += 1
        if self._answers >= _FIRST_ANSWERS and self._backwards % _BACKWARDS_BETWEEN_QUESTIONS:
            return
        if grad_output.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        if self._told is None or self._told.dtype != grad_output.dtype:
            self._told = torch.full((), math.nan, dtype=grad_output.dtype, pin_memory=grad_output.is_cuda)
        self._told.copy_(grad_output, non_blocking=True)


FOR_ONE = Expectation(remembers=False)
_expectations: dict[Any, Expectation] = {}


def expectation_of(input: Tensor, reduction: int, kind: str) -> Expectation:
    """What is expected of the backward of this loss.

    Nothing is remembered of an unreduced loss, which has no one ``grad_output``, nor of a small one on a device.
    """
    on_host = placement.is_on_host(input)
    size = input.numel()
    if reduction == 0 or not (on_host or size >= _SMALL_ELEMENTS_ON_DEVICE):
        return FOR_ONE
    is_small = size < _SMALL_ELEMENTS
    key: tuple[Any, ...] = (kind, reduction, input.dtype)
    if size >= _TINY_ELEMENTS:
        key = (*key, input.device, is_small, input.shape[1:] if input.dim() > 1 else ())
    expectation = _expectations.get(key)
    if expectation is None:
        if len(_expectations) >= _MOST_LOSSES:
            _expectations.clear()
        made = Expectation(always_prepares=is_small) if on_host else DeviceExpectation()
        expectation = _expectations[key] = made
    return expectation
