"""Cross-entropy of a linear layer as a ``torch.autograd.Function``, a chunk of rows at a time.

Note [Gradients of a linear loss]
A mean or a sum computes the gradients of input and weight in its forward, while a chunk's logits are there: three
products, as many as the layer alone needs. They stay on the context in the type of computation, for ``grad_output`` 1,
until the backward multiplies them and rounds once: its bits depend on nothing that was before. An unreduced loss, a
loss under saved-tensor hooks (a checkpoint would compute the gradients twice) and a ``grad_output`` that is not finite
(0 times infinity must stay in the rows that count) compute them in the backward, one product more. An unreduced loss
keeps its logits where they are one chunk of at most ``CHUNK_BYTES``: that product is a fifth of the time or more.

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
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..operators.class_axis import is_class
from ..operators.composite import needed_gradients, pulled_back
from ..operators.linear_cross_entropy import (
    LinearLossOptions,
    autocast_is_off,
    composite,
    counting_rows,
    mean_denominator,
    sizes_of_losses,
)
from ..operators.registration import MEAN, NONE
from ..operators.row_terms import RowTerms
from ..routing import is_watched, records_graph
from . import placement
from .backward import dense, is_batched, keeps_graph
from .eager import eager_apply, saves_through_hooks, smoothed_target
from .linear_chunks import Chunk, LinearChunks
from .linear_gradients import LinearGradients
from .row_losses import RowLoss

__all__ = ["LinearCrossEntropyFunction", "LinearProblem", "computed_gradients", "fused_linear_cross_entropy"]

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


class LinearCrossEntropyFunction(torch.autograd.Function):
    r"""Cross-entropy of :math:`x W^\top + b`, whose logits exist a chunk of rows at a time.

    .. math::
        \frac{\partial \ell}{\partial x} = g W, \qquad
        \frac{\partial \ell}{\partial W} = g^\top x, \qquad
        \frac{\partial \ell}{\partial b} = \sum_n g_n

    with the gradient :math:`g` of the logits: see :class:`fused_losses.autograd.CrossEntropyFunction`.

    Args of :meth:`apply`, by position:
        input: :math:`(N, F)`; float32, float64, bfloat16 or float16.
        weight: :math:`(C D, F)`, for :math:`D` heads of :math:`C` classes.
        bias: :math:`(C D)`, or ``None``.
        target: class indices :math:`(N)`, or :math:`(N, D)`; or probabilities :math:`(N, C)`, or :math:`(N, C, D)`.
        class_weight: :math:`(C)`, or ``None``.
        token_weight: a factor for each loss, in the losses' shape, or ``None``.
        options: :class:`fused_losses.operators.linear_cross_entropy.LinearLossOptions`.
        chunk_rows: rows of a chunk, or ``None``.

    Returns:
        The loss: a scalar, or in the shape of the positions without reduction.

    Raises:
        IndexError: a class index is neither in :math:`[0, C)` nor ``ignore_index``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        class_weight: Tensor | None,
        token_weight: Tensor | None,
        options: LinearLossOptions,
        chunk_rows: int | None = None,
    ) -> Tensor:
        tensors = (input, weight, bias, target, class_weight, token_weight)
        wants_token_weight = ctx.needs_input_grad[5]
        ctx.options, ctx.chunk_rows, ctx.dtype = options, chunk_rows, input.dtype
        ctx.gradients = ctx.factor = ctx.logits = None
        with autocast_is_off(input.device.type):
            problem = LinearProblem(options, chunk_rows, *tensors, keeps_weightless=wants_token_weight)
            if options.reduction != NONE and not wants_token_weight and not saves_through_hooks():
                loss, ctx.gradients, ctx.factor = problem.loss_and_gradients(ctx.needs_input_grad[:3])
                ctx.save_for_backward(*tensors, None, None)
            else:
                losses, statistics = problem.losses_and_statistics()
                loss = problem.reduced(losses)
                ctx.logits = None if saves_through_hooks() else problem.chunks.small_logits()
                ctx.save_for_backward(*tensors, losses if wants_token_weight else None, statistics)
        return loss.to(options.loss_dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_output = dense(grad_output)
        is_plain = _is_plain(grad_output)
        with autocast_is_off(grad_output.device.type):
            # Before what was saved is asked for, which may have been modified since: the next step of an optimizer.
            if is_plain and ctx.gradients is not None:
                scale = _scale_of_gradients(ctx.factor, grad_output)
                if scale is not None:
                    return (*_take_gradients(ctx, scale), None, None, None, None, None)
            *tensors, losses, statistics = ctx.saved_tensors  # once: a checkpoint unpacks them no second time
            if torch.compiler.is_compiling():
                return (*_gradients_in_a_graph(ctx, tensors, grad_output, losses), None, None)
            if not is_plain:
                return (*_watched_gradients(ctx, tensors, grad_output), None, None)
            arguments = (ctx.options, ctx.chunk_rows, tensors, ctx.needs_input_grad, grad_output, losses, statistics)
            *of_layer, of_token_weight = computed_gradients(*arguments, _take_logits(ctx))
            return (*of_layer, None, None, of_token_weight, None, None)


def _is_plain(grad_output: Tensor) -> bool:
    """Whether nobody differentiates, batches or watches this backward."""
    return not (is_watched() or torch.is_grad_enabled() or type(grad_output) is not Tensor or is_batched(grad_output))


def _scale_of_gradients(factor: Tensor | None, grad_output: Tensor) -> float | Tensor | None:
    """What the forward's gradients are to be multiplied by; ``None`` where they do not serve."""
    if factor is not None:
        return factor * grad_output
    scale = grad_output.item()
    return scale if math.isfinite(scale) else None


def _take_gradients(ctx: Any, scale: float | Tensor) -> list[Tensor | None]:
    """What the forward computed, times ``grad_output``. Of a kept graph it is a copy: the caller may write into it."""
    keeps = keeps_graph()
    taken: list[Tensor | None] = []
    for gradient in ctx.gradients:
        if gradient is None:
            taken.append(None)
            continue
        if isinstance(scale, Tensor) or scale != 1:
            gradient = gradient * scale if keeps else gradient.mul_(scale)
        elif keeps and gradient.dtype == ctx.dtype:
            gradient = gradient.clone()
        taken.append(gradient.to(ctx.dtype))
    if not keeps:
        ctx.gradients = None
    return taken


def _take_logits(ctx: Any) -> Tensor | None:
    """Those that the forward kept, to be written over."""
    logits: Tensor | None = ctx.logits
    if logits is not None and keeps_graph():
        return logits.clone()
    ctx.logits = None
    return logits


def computed_gradients(
    options: LinearLossOptions,
    chunk_rows: int | None,
    tensors: Sequence[Tensor | None],
    wanted: Sequence[bool],
    grad_output: Tensor,
    losses: Tensor | None,
    statistics: Tensor | None = None,
    small_logits: Tensor | None = None,
) -> list[Tensor | None]:
    """Of input, weight, bias and, last, token weight, where they are wanted, with the logits computed again or kept.

    Args:
        losses: unweighted, where the token weight's gradient is wanted.
        statistics: of :meth:`LinearProblem.losses_and_statistics`, or ``None``.
        small_logits: of :meth:`LinearChunks.small_logits`, to be written over, or ``None``.
    """
    input, weight, bias, target, class_weight, token_weight = tensors
    assert input is not None and weight is not None and target is not None
    others = (target, class_weight, token_weight)
    problem = LinearProblem(options, chunk_rows, input, weight, bias, *others, keeps_weightless=wanted[5])
    if small_logits is not None:
        problem.chunks.reuse(small_logits)
    scale = (grad_output.double() / problem.denominator()).to(problem.chunks.dtype)
    gradients: list[Tensor | None] = [None, None, None]
    if any(wanted[:3]):
        gradients = problem.gradients(scale, (wanted[0], wanted[1], wanted[2]), statistics)
    rounded = [None if gradient is None else gradient.to(input.dtype) for gradient in gradients]
    if losses is None or token_weight is None:
        return [*rounded, None]
    return [*rounded, (losses * scale).to(token_weight.dtype)]


def _gradients_in_a_graph(
    ctx: Any, tensors: list[Any], grad_output: Tensor, losses: Tensor | None
) -> list[Tensor | None]:
    """Of compiled autograd, whose tracer breaks at :func:`torch.autograd.grad` and may lose what it gives: by the
    operator of ``linear_recomputed.py``."""
    wanted = list(ctx.needs_input_grad[:6])
    losses = grad_output.new_empty(0) if losses is None else losses
    arguments = (grad_output, *tensors, losses, wanted, ctx.chunk_rows, *ctx.options)
    *of_layer, of_token_weight = torch.ops.fused_losses.linear_cross_entropy_recomputed_backward(*arguments)
    found = [*of_layer, None, None, of_token_weight]
    return [gradient if wants else None for gradient, wants in zip(found, wanted, strict=True)]


def _watched_gradients(ctx: Any, tensors: list[Any], grad_output: Tensor) -> list[Tensor | None]:
    """Through torch's operators, with all logits."""
    return pulled_back(partial(composite, ctx.options), tensors, needed_gradients(ctx, tensors), grad_output)


_apply = eager_apply(LinearCrossEntropyFunction)


def fused_linear_cross_entropy(options: LinearLossOptions, chunk_rows: int | None, *tensors: Tensor | None) -> Tensor:
    """The loss in plain eager mode. ``tensors`` are those of :class:`LinearCrossEntropyFunction`."""
    input, weight, bias, target, class_weight, token_weight = tensors
    assert input is not None and weight is not None and target is not None
    if records_graph() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        target = smoothed_target(target, options.label_smoothing)
        return _apply(input, weight, bias, target, class_weight, token_weight, options, chunk_rows)
    with torch.no_grad(), autocast_is_off(input.device.type):
        problem = LinearProblem(options, chunk_rows, input, weight, bias, target, class_weight, token_weight)
        return problem.reduced(problem.losses()).to(options.loss_dtype)
