"""Refuses to time wrong numbers: every contender's loss and gradient are compared with torch eager's first.

A coarse net for a benchmark that calls something else than it says; exact parity is what `tests/` is for.
"""

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from benchmarks.contenders import Contender

# Twice the rounding of a bfloat16 loss (2^-8) and room for torch's own 16-bit sums.
LARGEST_RELATIVE_DIFFERENCE = 0.02


class DisagreementError(Exception):
    """A contender's loss or gradient is not that of torch eager."""


def check_agreement(entries: Sequence[Contender]) -> None:
    """Raises `DisagreementError` unless all contenders agree with the first."""
    reference, *others = entries
    loss, gradient = _loss_and_gradient(reference)
    for other in others:
        other_loss, other_gradient = _loss_and_gradient(other)
        difference = max(
            abs(other_loss.item() / loss.item() - 1),
            float((other_gradient - gradient).abs().max() / gradient.abs().max()),
        )
        if not difference <= LARGEST_RELATIVE_DIFFERENCE:  # also when it is NaN
            raise DisagreementError(f"{other.name} differs from {reference.name} by {difference:.3g}, relative")


def _loss_and_gradient(contender: Contender) -> tuple[Tensor, Tensor]:
    task = contender.tasks["forward_backward"]
    task.before_sample()
    loss, gradient = cast(tuple[Tensor, Tensor], task.calls[0]())
    return loss.detach(), gradient.detach()
