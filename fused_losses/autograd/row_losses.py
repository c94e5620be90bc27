"""The loss of each row of a chunk of logits and the gradient of the logits: the only calls of operators for a chunk."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .. import _ops
from ..operators.registration import NONE, SUM, below_autograd
from ..operators.row_terms import RowTerms

__all__ = ["RowLoss"]


class RowLoss(NamedTuple):
    """The loss of a row: what does not depend on the row."""

    class_weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    terms: RowTerms

    def _options(self, reduction: int) -> tuple[int, int, float, bool]:
        """Last: the losses of 16-bit logits are not rounded."""
        return reduction, self.ignore_index, self.label_smoothing, True

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Of the rows, without a gradient."""
        return _ops.cross_entropy_forward(logits, target, self.class_weight, *self._options(NONE), *self.terms)

    def losses_and_statistics(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """With what :meth:`gradient` needs besides the logits."""
        arguments = (logits, target, self.class_weight, *self._options(NONE), *self.terms)
        with below_autograd():
            return _ops.cross_entropy_with_statistics(*arguments)

    def sum_and_gradient(self, logits: Tensor, target: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """The sum of the losses, and the gradient of ``scale`` times it."""
        arguments = (logits, target, self.class_weight, scale, *self._options(SUM), *self.terms)
        return _ops.cross_entropy_with_gradient(*arguments)

    def gradient(self, row_scale: Tensor, logits: Tensor, target: Tensor, statistics: Tensor) -> Tensor:
        """The gradient of the sum of ``row_scale`` times the losses, in the place of the logits."""
        arguments = (row_scale, logits, target, self.class_weight, statistics, *self._options(NONE), *self.terms)
        with below_autograd():
            if not _ops.cross_entropy_backward_over_logits(*arguments):
                raise RuntimeError("a chunk's logits overlap")  # no assert, which python -O leaves out
        return logits
