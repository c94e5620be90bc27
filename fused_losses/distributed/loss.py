"""The loss of all rows from their statistics, and back: tensors of [N], equal on all ranks.

See Note [Target mass] in ``csrc/core/cross_entropy.h``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..operators.logit_transform import LogitTransform
from .arguments import group_of_name
from .shard import NOT_HERE, GradientsOfSums
from .statistics import Statistics, Vocabulary

__all__ = ["Kept", "LossOptions", "gradients_of_loss", "gradients_of_sums", "loss_and_kept"]


class LossOptions(NamedTuple):
    """What a loss has besides its tensors; plain values, of which an operator takes each."""

    group_name: str
    vocab_start: int | None
    ignore_index: int
    label_smoothing: float
    reduction: str
    logit_scale: float
    softcap: float | None
    lse_square_scale: float

    @property
    def transform(self) -> LogitTransform:
        return LogitTransform(self.logit_scale, self.softcap or 0.0)

    @property
    def checked(self) -> tuple[float, float | None, float, float, str]:
        """As :func:`fused_losses.distributed.arguments.check_options` takes them."""
        return self.logit_scale, self.softcap, self.lse_square_scale, self.label_smoothing, self.reduction

    def vocabulary(self, num_classes: int, class_weight: Tensor | None) -> Vocabulary:
        return Vocabulary(
            group=group_of_name(self.group_name),
            num_classes=num_classes,
            vocab_start=self.vocab_start,
            class_weight=class_weight,
            transform=self.transform,
            ignore_index=self.ignore_index,
            wants_weighted=self.label_smoothing != 0,
        )


class Kept(NamedTuple):
    """What the backward of a loss needs besides its arguments: fields of :class:`Statistics`, and the losses."""

    row_losses: Tensor
    """[N], without the weights of tokens."""
    log_sum_exp: Tensor
    target_weight: Tensor
    saved: Tensor
    local_target: Tensor
    counts: Tensor
    totals: Tensor


def loss_and_kept(
    statistics: Statistics, token_weight: Tensor | None, sizes: torch.Size, options: LossOptions
) -> tuple[Tensor, Kept]:
    """The loss, of these sizes without reduction. Nothing of what is returned shares memory."""
    losses = -statistics.log_prob * statistics.target_weight
    if options.label_smoothing:
        share = options.label_smoothing / statistics.totals[1]
        losses = losses * (1 - options.label_smoothing) - statistics.weighted_log_prob * share
    if options.lse_square_scale:
        losses = losses + options.lse_square_scale * statistics.log_sum_exp.square()
    losses = torch.where(statistics.counts, losses, 0)
    kept = Kept(losses, *(getattr(statistics, name) for name in Kept._fields[1:]))
    if token_weight is None:
        weighted = losses.clone()
    else:  # what counts for nothing may be infinite
        factor = token_weight.reshape(-1).to(losses.dtype)
        weighted = torch.where(factor == 0, 0, losses * factor)
    if options.reduction == "none":
        return weighted.view(sizes), kept
    loss = weighted.sum()
    return (loss / statistics.target_weight.sum() if options.reduction == "mean" else loss), kept


def gradients_of_loss(
    grad_output: Tensor, kept: Kept, token_weight: Tensor | None, options: LossOptions
) -> tuple[GradientsOfSums, Tensor | None]:
    """Of the shard's sums, and of the weights of tokens."""
    scale = grad_output.reshape(-1).expand(kept.row_losses.shape)
    if options.reduction == "mean":
        scale = scale / kept.target_weight.sum()
    of_token_weight = None
    if token_weight is not None:
        of_token_weight = (kept.row_losses * scale).view(token_weight.shape).to(token_weight.dtype)
        scale = scale * token_weight.reshape(-1).to(scale.dtype)
    scale = torch.where(kept.counts, scale, 0)  # 0 of 0 rows that count is NaN, which no gradient is
    of_log_prob = -scale * kept.target_weight
    of_weighted = of_log_sum_exp = None
    if options.label_smoothing:
        of_log_prob = of_log_prob * (1 - options.label_smoothing)
        of_weighted = scale * -(options.label_smoothing / kept.totals[1])
    if options.lse_square_scale:
        of_log_sum_exp = scale * (2 * options.lse_square_scale) * torch.where(kept.counts, kept.log_sum_exp, 0)
    statistics = GradientsOfSums(of_log_prob, of_log_sum_exp, None, of_weighted)
    return gradients_of_sums(statistics, kept.saved, kept.local_target, kept.counts, kept.totals), of_token_weight


def gradients_of_sums(
    gradients: GradientsOfSums, saved: Tensor, local_target: Tensor, counts: Tensor, totals: Tensor | None = None
) -> GradientsOfSums:
    """Of the gradients of the statistics, the last of which is of sum w_c log p_c.

    d log_prob / dx_c = [c = t] - p_c. Where t is in another shard the operator takes the row for one with an ignored
    target, so there the second part goes with the log-sum-exp's gradient, which is p_c.
    d weighted_log_prob / dx_c = w_c - p_c sum w.
    """
    of_log_sum_exp = torch.zeros_like(saved[0]) if gradients.log_sum_exp is None else gradients.log_sum_exp
    if gradients.log_prob is not None:
        is_elsewhere = counts & (local_target == NOT_HERE)
        of_log_sum_exp = of_log_sum_exp - torch.where(is_elsewhere, gradients.log_prob, 0)
    if gradients.weighted is not None:
        assert totals is not None
        of_log_sum_exp = of_log_sum_exp - gradients.weighted * totals[0]
    return gradients._replace(log_sum_exp=of_log_sum_exp)
