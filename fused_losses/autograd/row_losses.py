"""The loss of each row of a chunk of logits, and the gradient of the logits: the only calls of operators for a chunk.

Three ways: the operator of cross-entropy; with a scale, a softcap or a z-loss the statistics of tokens; and for what
neither has (a softcap of probability targets, of smoothed ones or of several heads) torch's operators, differentiated
by torch. The last two end where the operator of cross-entropy has these options itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _ops
from ..operators.registration import NONE, SUM
from ..operators.token_statistics import transformed
from ..torch_losses import torch_function
from .backward import below_autograd

__all__ = ["RowLoss"]

_NUM_SAVED = 4  # rows of what the operator of the statistics saves


class RowLoss(NamedTuple):
    """The loss of a row: what does not depend on the row."""

    class_weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    logit_scale: float
    softcap: float  # 0: none
    lse_square_scale: float

    @property
    def is_plain(self) -> bool:
        """Whether it is cross-entropy and no more."""
        return self.logit_scale == 1 and self.softcap == 0 and self.lse_square_scale == 0

    def _is_of_tokens(self, logits: Tensor, target: Tensor) -> bool:
        return logits.dim() == 2 and not target.is_floating_point() and self.label_smoothing == 0

    def _options(self, reduction: int) -> tuple[Tensor | None, int, int, float, bool]:
        return self.class_weight, reduction, self.ignore_index, self.label_smoothing, False

    def losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Of the rows, without a gradient."""
        if self.is_plain:
            return _ops.cross_entropy_forward(logits, target, *self._options(NONE))
        return self.losses_and_statistics(logits, target)[0]

    def losses_and_statistics(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """With what :meth:`gradient` needs besides the logits."""
        with below_autograd():
            if self.is_plain:
                return _ops.cross_entropy_with_statistics(logits, target, *self._options(NONE))
            if self._is_of_tokens(logits, target):
                return self._losses_of_tokens(logits, target)
        return self.by_torch(logits, target), logits.new_empty(0)

    def sum_and_gradient(self, logits: Tensor, target: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """The sum of the losses, and the gradient of ``scale`` times it."""
        if self.is_plain:
            return _ops.cross_entropy_with_gradient(logits, target, *self._options(SUM), scale)
        losses, statistics = self.losses_and_statistics(logits, target)
        row_scale = torch.full_like(losses, scale)
        return losses.sum(dtype=torch.float64), self.gradient(row_scale, logits, target, statistics)

    def gradient(self, row_scale: Tensor, logits: Tensor, target: Tensor, statistics: Tensor) -> Tensor:
        """The gradient of the sum of ``row_scale`` times the losses; the logits are lost where it takes their place."""
        if self.is_plain:
            with below_autograd():
                class_weight, *options = self._options(NONE)
                _ops.cross_entropy_backward_over_logits(row_scale, logits, target, class_weight, statistics, *options)
            return logits
        if self._is_of_tokens(logits, target):
            with below_autograd():
                return self._gradient_of_tokens(row_scale, logits, target, statistics)
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            return torch.autograd.grad(self.by_torch(leaf, target), leaf, row_scale)[0]

    def by_torch(self, logits: Tensor, target: Tensor) -> Tensor:
        """The losses by torch's operators: of logits (N, C) or (N, C, D)."""
        x = transformed(logits, self.logit_scale, self.softcap)
        losses = torch_function("cross_entropy")(
            x,
            target if target.is_floating_point() else target.long(),
            self.class_weight,
            reduction="none",
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )
        if self.lse_square_scale:
            if not target.is_floating_point():  # an ignored row has no part in it, nor a NaN in the gradient
                x = torch.where((target != self.ignore_index).unsqueeze(1), x, 0)
            z = self.lse_square_scale * torch.logsumexp(x, 1).square()
            losses = losses + (z if target.is_floating_point() else torch.where(target != self.ignore_index, z, 0))
        return losses

    def _weights(self, target: Tensor) -> tuple[Tensor | float, Tensor]:
        """The class weight of each target, and which rows count."""
        counts = target != self.ignore_index
        if self.class_weight is None:
            return 1.0, counts
        return self.class_weight[torch.where(counts, target, 0).long()], counts

    def _losses_of_tokens(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, log_sum_exp, _, _, saved = _ops.token_statistics(
            logits, target, self.logit_scale, self.softcap, self.ignore_index
        )
        weight, counts = self._weights(target)
        losses = -weight * log_prob + self.lse_square_scale * log_sum_exp.square()
        return torch.where(counts, losses, 0), torch.cat([saved, log_sum_exp.unsqueeze(0)])

    def _gradient_of_tokens(self, row_scale: Tensor, logits: Tensor, target: Tensor, statistics: Tensor) -> Tensor:
        saved, log_sum_exp = statistics[:_NUM_SAVED], statistics[_NUM_SAVED]
        weight, counts = self._weights(target)
        row_scale = torch.where(counts, row_scale, 0)
        to_log_sum_exp = row_scale * (2 * self.lse_square_scale) * log_sum_exp if self.lse_square_scale else None
        return _ops.token_statistics_backward(
            -row_scale * weight,
            to_log_sum_exp,
            None,
            logits,
            target,
            saved,
            self.logit_scale,
            self.softcap,
            self.ignore_index,
        )
