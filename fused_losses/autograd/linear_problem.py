"""A call of a linear layer's cross-entropy: its tensors, and the loops over chunks of their rows.

Note [Rows that do not count]
Ignored rows, and rows of token weight 0, are left out before the first product, whatever is in them. Where the tensors
are on a GPU the host waits for their number, once; while a CUDA graph is captured it cannot, and no row is left out.

Note [Scales on a GPU]
The host does not learn what a mean divides by, nor ``grad_output``. The chunks' gradients are those of the sum of the
losses, in float16 times 256: the probabilities of a vocabulary would be subnormal numbers. The backward multiplies by
``grad_output`` and the rest, all at once; what is not finite goes into every element.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..operators.class_axis import is_class
from ..operators.linear_cross_entropy import LinearLossOptions, counting_rows, mean_denominator, sizes_of_losses
from ..operators.registration import MEAN, NONE
from ..operators.row_terms import RowTerms
from . import placement
from .linear_chunks import Chunk, LinearChunks
from .linear_gradients import LinearGradients
from .row_losses import RowLoss

__all__ = ["LinearProblem"]

_Wanted = tuple[bool, bool, bool]  # the gradients of input, weight and bias
_GRADIENT_UNITS = {torch.float16: 256.0}  # see Note [Scales on a GPU]


class LinearProblem:
    """The tensors of a call, and the loops over its chunks."""

    def __init__(
        self,
        options: LinearLossOptions,
        chunk_rows: int | None,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        class_weight: Tensor | None,
        token_weight: Tensor | None,
        keeps_weightless: bool = False,
    ) -> None:
        num_classes = options.num_classes
        num_heads = weight.shape[0] // num_classes
        self.options = options
        self.target = target
        self.sizes = sizes_of_losses(target)  # of the losses
        self._counts = counting_rows(target, options.ignore_index)
        has_weights = class_weight is not None or token_weight is not None
        if has_weights and self._counts is not None:  # else by the kernels
            _check_class_indices(target, self._counts, options)
        kept = _kept_rows(self._counts, None if keeps_weightless else token_weight)
        shape = (num_classes, num_heads) if len(self.sizes) > 1 else (num_classes,)
        self.chunks = LinearChunks(input, weight, bias, shape, kept, chunk_rows)
        dtype = self.chunks.dtype
        self.token_weight = None if token_weight is None else token_weight.to(dtype)
        self.row_loss = RowLoss(
            None if class_weight is None else class_weight.to(dtype),
            options.ignore_index,
            options.label_smoothing,
            RowTerms(options.logit_scale, options.softcap, options.lse_square_scale),
        )
        self._class_weight = class_weight
        knows_number = not has_weights and len(self.sizes) == 1 and not _is_captured(target)
        self._num_counting = self.chunks.num_rows if knows_number else None

    def target_of(self, chunk: Chunk) -> Tensor:
        target = chunk.take(self.target)
        return target.to(self.chunks.dtype) if target.is_floating_point() else target

    def losses(self) -> Tensor:
        """Of all positions, unweighted by tokens, 0 where they do not count."""
        losses = self._no_losses()
        for chunk in self.chunks:
            logits = self.chunks.logits(self.chunks.rows(chunk))
            chunk.put(losses, self.row_loss.losses(logits, self.target_of(chunk)))
        return losses

    def losses_and_statistics(self) -> tuple[Tensor, Tensor]:
        """:meth:`losses`, and what :meth:`gradients` needs besides: (3, positions of the rows that count)."""
        losses = self._no_losses()
        statistics = [losses.new_empty(3, 0)]
        for chunk in self.chunks:
            logits = self.chunks.logits(self.chunks.rows(chunk))
            of_chunk, statistics_of_chunk = self.row_loss.losses_and_statistics(logits, self.target_of(chunk))
            chunk.put(losses, of_chunk)
            statistics.append(statistics_of_chunk)
        return losses, torch.cat(statistics, 1)

    def _no_losses(self) -> Tensor:
        return self.chunks.input.new_zeros(self.sizes, dtype=self.chunks.dtype)

    def reduced(self, losses: Tensor) -> Tensor:
        if self.token_weight is not None:
            losses = losses * self.token_weight
            losses = losses if self._counts is None else torch.where(self._counts, losses, 0)
        if self.options.reduction == NONE:
            return losses
        return losses.sum(dtype=torch.float64) / self.denominator()

    def denominator(self) -> float | Tensor:
        """What a reduced loss is divided by; in float64 where the host does not know it."""
        if self.options.reduction != MEAN:
            return 1.0
        if self._num_counting is not None:
            return float(self._num_counting)
        return mean_denominator(self.target, self._class_weight, self.options)

    def loss_and_gradients(self, wanted: _Wanted) -> tuple[Tensor, list[Tensor | None], Tensor | None]:
        """The reduced loss, its gradients in the type of their sums, and what they are still to be multiplied by."""
        denominator = self.denominator()
        total = torch.zeros((), dtype=torch.float64, device=self.target.device)
        if placement.is_on_host(self.target):
            scale, factor = (1.0 / float(denominator) if denominator else math.inf), None
        else:
            scale = _GRADIENT_UNITS.get(self.chunks.product_dtype, 1.0)
            factor = torch.ones_like(total) / (denominator * scale)
            if self._counts is not None:  # of a mean over no rows the gradients are zeros, not 0 times infinity
                factor = torch.where(self._counts.any(), factor, 1)
        alpha, scale = (scale, 1.0) if self.chunks.rounds else (1.0, scale)  # Note [Types of the products]
        gradients = LinearGradients(self.chunks, wanted, alpha=alpha, lends=self._reads_borrowed_memory())
        row_weight = self.token_weight
        if row_weight is None and self.chunks.overwritten:
            row_weight = self.chunks.input.new_ones(self.sizes, dtype=self.chunks.dtype)
        row_scale = None if row_weight is None else (row_weight * scale).to(self.chunks.dtype)
        for chunk in self.chunks:
            rows, target = self.chunks.rows(chunk), self.target_of(chunk)
            logits = self.chunks.logits(rows)
            if row_scale is None or row_weight is None:
                of_chunk, logit_gradient = self.row_loss.sum_and_gradient(logits, target, scale)
            else:
                losses, statistics = self.row_loss.losses_and_statistics(logits, target)
                of_chunk = (losses * chunk.take(row_weight)).sum(dtype=torch.float64)
                logit_gradient = self.row_loss.gradient(chunk.take(row_scale), logits, target, statistics)
            total += of_chunk
            gradients.add(chunk, rows, logit_gradient)
            del logit_gradient  # its memory is the next chunk's
        return total / denominator, gradients.total(), factor

    def gradients(self, scale: Tensor, wanted: _Wanted, statistics: Tensor | None) -> list[Tensor | None]:
        """Of the sum of ``scale``, for all or for each, times the losses times their token weights.

        ``statistics`` are those of :meth:`losses_and_statistics`, or ``None``, which computes them.
        """
        alpha = 1.0
        if self.chunks.rounds and scale.dim() == 0 and math.isfinite(scale.item()):  # Note [Types of the products]
            alpha, scale = scale.item(), torch.ones_like(scale)
        row_scale = scale.expand(self.sizes).contiguous() if self.token_weight is None else scale * self.token_weight
        gradients = LinearGradients(self.chunks, wanted, alpha=alpha, lends=self._reads_borrowed_memory())
        for chunk in self.chunks:
            rows, target = self.chunks.rows(chunk), self.target_of(chunk)
            logits = self.chunks.logits(rows)
            of_chunk = self._statistics_of(chunk, statistics, logits, target)
            gradients.add(chunk, rows, self.row_loss.gradient(chunk.take(row_scale), logits, target, of_chunk))
        return gradients.total()

    def _statistics_of(self, chunk: Chunk, statistics: Tensor | None, logits: Tensor, target: Tensor) -> Tensor:
        if statistics is None:
            return self.row_loss.losses_and_statistics(logits, target)[1]
        heads = math.prod(self.sizes[1:])
        return statistics[:, chunk.begin * heads : chunk.end * heads].contiguous()

    def _reads_borrowed_memory(self) -> bool:
        """The kernels read logits whose classes are apart where the target's are too, and the positions are not."""
        return len(self.sizes) == 1 and not self.target.is_floating_point()


def _check_class_indices(target: Tensor, counts: Tensor, options: LinearLossOptions) -> None:
    """On a GPU the kernels stop at a bad one."""
    if not placement.is_on_host(target):
        return
    bad = counts & ~is_class(target, options.num_classes)
    if bad.any():
        raise IndexError(f"Target {target[bad][0].item()} is out of bounds.")


def _is_captured(tensor: Tensor) -> bool:
    """Whether work on it goes into a CUDA graph now, which the host cannot wait for."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _kept_rows(counts: Tensor | None, token_weight: Tensor | None) -> Tensor | None:
    """See Note [Rows that do not count]; ``None`` where all count."""
    if token_weight is not None:
        counts = token_weight != 0 if counts is None else counts & (token_weight != 0)
    if counts is None or _is_captured(counts):
        return None
    counts = counts.flatten(1).any(1) if counts.dim() > 1 else counts
    kept = counts.nonzero().squeeze(1)
    return None if len(kept) == len(counts) else kept
