"""Losses of a linear layer that never make the tensor of its logits: of language models and of large catalogues."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function

from .autograd.linear_cross_entropy import fused_linear_cross_entropy
from .autograd.linear_operator import linear_cross_entropy_in_a_graph
from .autograd.linear_token_operator import linear_token_statistics_in_a_graph
from .autograd.linear_token_statistics import LinearTokenStatisticsFunction, fused_linear_token_statistics
from .linear_layer import LinearLayer, checked_layer
from .operators.class_axis import INDEX_DTYPES
from .operators.linear_cross_entropy import LinearLossOptions, composite, composite_statistics
from .operators.registration import REDUCTIONS, refusal_of_reduction
from .operators.row_terms import RowTerms, check_token_weight, row_terms
from .operators.row_terms import refusal as refusal_of_terms
from .operators.token_statistics import refusal as refusal_of_statistics
from .operators.token_statistics import require_floating_point
from .route_log import COMPILED, EAGER, WATCHED, note
from .routing import (
    OVERRIDDEN,
    SEEN_BY_TORCH,
    has_overrides,
    is_compiling,
    kernel_route,
    reason_for_torch,
    reason_of_companion,
    reason_of_size,
    records_graph,
)
from .tokens import TokenStatistics
from .torch_losses import LINEAR_CROSS_ENTROPY, mark_as_replacement, torch_function

__all__ = ["linear_cross_entropy", "linear_token_statistics"]

_IGNORE_INDEX = -100
_torch_linear_cross_entropy = torch_function(LINEAR_CROSS_ENTROPY) if hasattr(F, LINEAR_CROSS_ENTROPY) else None


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0,
    options: Any = None,
    logit_scale: float = 1,
    softcap: float | None = None,
    lse_square_scale: float = 0,
    token_weight: Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy of a linear layer, as :func:`torch.nn.functional.linear_cross_entropy`, without the logits.

    .. math::
        l = x W^\top + b, \qquad
        z_c = s \tanh(a\, l_c / s), \qquad
        \ell_n = \tau_n \left( H(q_n, \operatorname{softmax}(z_n)) + \lambda \Big(\log \sum_c e^{z_{nc}}\Big)^2 \right)

    with :func:`~fused_losses.functional.cross_entropy` :math:`H`, ``logit_scale`` :math:`a`, ``softcap`` :math:`s`,
    ``lse_square_scale`` :math:`\lambda` and ``token_weight`` :math:`\tau`. By default :math:`z = l` and
    :math:`\ell = H`. The logits exist a chunk of rows at a time, on a CPU in float32 where the input has 16 bits that
    the processor does not multiply as they are; a mean or a sum computes its gradients with them. Rows that are
    ignored, or of token weight 0, cost nothing.

    Args:
        input: float32, float64, bfloat16 or float16.
        linear_weight: of the input's type.
        target: class indices (int64, uint8 or, beyond torch, int32) or probabilities.
        linear_bias: of the input's type, or ``None``.
        weight: one weight per class.
        reduction: ``"none"``, ``"mean"`` (over the weights of the targets) or ``"sum"``.
        ignore_index: the class index that does not count; ``None`` is -100, and allows probabilities.
        label_smoothing: in :math:`[0, 1]`.
        options: :class:`torch.nn.LinearCrossEntropyOptions`, or what has its ``batch_chunk_size``: the rows of a
            chunk. The rest of it chooses among torch's ways to compute and means nothing here.
        logit_scale: beyond torch: a finite number other than 0. A temperature :math:`T` is ``1 / T``.
        softcap: beyond torch: a positive number, or ``None``.
        lse_square_scale: beyond torch: of the z-loss, which class weights do not weight.
        token_weight: beyond torch: a factor for each loss. The mean divides by what it would divide by without it.

    Shape:
        - input: :math:`(F)`, :math:`(N, F)` or, beyond torch, :math:`(\dots, F)`.
        - linear_weight: :math:`(C, F)`, or :math:`(C, d_1, \dots, d_K, F)` for an input :math:`(N, F)`.
        - linear_bias: the weight's without :math:`F`.
        - target: indices :math:`(\dots)` or :math:`(N, d_1, \dots, d_K)`; probabilities :math:`(\dots, C)` or
          :math:`(N, C, d_1, \dots, d_K)`.
        - weight: :math:`(C)`.
        - token_weight: that of index targets.

    Returns:
        A scalar, or the losses in the shape of index targets with ``reduction="none"``.

    Raises:
        IndexError: a class index is neither in :math:`[0, C)` nor ``ignore_index``.
        ValueError: an option beyond torch's is out of range, ``token_weight`` has another shape, or such options are
            asked of tensors or a reduction that only torch may know.
        TypeError: a scale or a softcap is a tensor.
        RuntimeError: as torch's function.

    Example::

        >>> hidden, head = torch.ones(2, 3, requires_grad=True), torch.tensor([[0.1] * 3, [0.2] * 3])
        >>> loss = linear_cross_entropy(hidden, head, torch.tensor([1, 0]))
        >>> round(loss.item(), 4)
        0.7044
        >>> loss.backward()

    Source: `Cut Your Losses in Large-Vocabulary Language Models <https://arxiv.org/abs/2411.09009>`_ and
    `Liger Kernel <https://arxiv.org/abs/2410.10989>`_; the z-loss: `PaLM <https://arxiv.org/abs/2204.02311>`_.
    """
    tensors = (input, linear_weight, target, linear_bias, weight)
    is_torchs = logit_scale == 1 and softcap is None and lse_square_scale == 0 and token_weight is None
    overridden = has_overrides(*tensors, token_weight)
    if overridden and is_torchs and _torch_linear_cross_entropy is not None and _torch_takes(input, target):
        note(LINEAR_CROSS_ENTROPY, f"torch: {OVERRIDDEN}")
        return handle_torch_function(
            _torch_linear_cross_entropy,
            tensors,
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
        )
    terms = row_terms(logit_scale, softcap, lse_square_scale, 0.0)
    layer = checked_layer(input, linear_weight, linear_bias)
    if ignore_index is not None and layer.holds_probabilities(target):
        raise RuntimeError("ignore_index cannot be specified when target contains probabilities")
    plain = (target, weight, reduction, _IGNORE_INDEX if ignore_index is None else ignore_index, label_smoothing)
    chunk_rows = _chunk_rows(options, layer, target, label_smoothing)
    if (refusal := _refusal(layer, *plain)) is not None:
        if not is_torchs:
            raise ValueError(f"linear_cross_entropy with options beyond torch's: {refusal}")
        note(LINEAR_CROSS_ENTROPY, f"torch: {refusal}")
        return _by_torch(layer, *plain)
    check_token_weight(token_weight, layer.positions())
    loss_options = LinearLossOptions(
        layer.num_classes(),
        REDUCTIONS[reduction],
        *plain[3:],
        terms.logit_scale,
        terms.softcap,
        terms.lse_square_scale,
        layer.loss_dtype(target),
    )
    of_positions = None if token_weight is None else layer.rows_of_positions(token_weight)
    arguments = (*layer.autocast(), layer.rows_of_target(target), weight, of_positions)
    reason = OVERRIDDEN if overridden else _against_chunks(layer, target, weight, token_weight, terms)
    if reason is not None:
        note(LINEAR_CROSS_ENTROPY, f"torch: {reason}")
        loss = composite(loss_options, *arguments)
    elif kernel_route() == COMPILED:
        note(LINEAR_CROSS_ENTROPY, COMPILED)
        loss = linear_cross_entropy_in_a_graph(loss_options, chunk_rows, *arguments)
    else:
        note(LINEAR_CROSS_ENTROPY, EAGER)
        loss = fused_linear_cross_entropy(loss_options, chunk_rows, *arguments)
    return loss if loss_options.reduction else loss.reshape(layer.positions())


def reason_against_chunks(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int | None,
    label_smoothing: float,
    options: Any,
    logit_scale: float,
    softcap: float | None,
    lse_square_scale: float,
    token_weight: Tensor | None,
) -> str | None:
    """Why torch's operators compute this call of :func:`linear_cross_entropy`, or ``None``."""
    if has_overrides(input, linear_weight, target, linear_bias, weight, token_weight):
        return OVERRIDDEN
    layer = checked_layer(input, linear_weight, linear_bias)
    terms = row_terms(logit_scale, softcap, lse_square_scale, 0.0)
    ignore_index = _IGNORE_INDEX if ignore_index is None else ignore_index
    return _refusal(layer, target, weight, reduction, ignore_index, label_smoothing) or _against_chunks(
        layer, target, weight, token_weight, terms
    )


def linear_token_statistics(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    logit_scale: float = 1,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> TokenStatistics:
    r"""What :func:`~fused_losses.functional.token_statistics` says of the logits of a linear layer, without them.

    .. math::
        l = x W^\top + b

    The backward computes the logits again, a chunk of rows at a time: four products in all.

    Args:
        input: float32, float64, bfloat16 or float16.
        linear_weight: of the input's type.
        target: class indices: int64, int32 or uint8.
        linear_bias: of the input's type, or ``None``.
        logit_scale: a finite number other than 0.
        softcap: a positive number, or ``None``.
        ignore_index: the target without a log-probability. Its row has all the other statistics.

    Shape:
        - input: :math:`(\dots, F)`.
        - linear_weight: :math:`(V, F)`.
        - linear_bias: :math:`(V)`.
        - target and every result: :math:`(\dots)`.

    Returns:
        float32 results, or float64 of a float64 input, and the int64 ``argmax``.

    Raises:
        IndexError: a target is neither in :math:`[0, V)` nor ``ignore_index``.
        ValueError: ``softcap`` or ``logit_scale`` is out of range, or the target's shape or type does not fit.
        TypeError: one of these two is a tensor.
        RuntimeError: the shapes of input, weight and bias do not fit, or their types.
        NotImplementedError: they are of no floating-point type.

    Example::

        >>> hidden, head = torch.ones(2, 3, requires_grad=True), torch.tensor([[0.1] * 3, [0.2] * 3])
        >>> tokens = linear_token_statistics(hidden, head, torch.tensor([1, 0]))
        >>> [round(value, 4) for value in tokens.log_prob.tolist()]
        [-0.5544, -0.8544]

    Source: `Group Relative Policy Optimization <https://arxiv.org/abs/2402.03300>`_ asks for these.
    """
    layer, options, reason = _statistics_asked(
        input, linear_weight, target, linear_bias, logit_scale, softcap, ignore_index
    )
    arguments = (*layer.autocast(), target.flatten())
    route = kernel_route()
    note("linear_token_statistics", route if reason is None else f"torch: {reason}")
    if reason is not None:
        results: tuple[Tensor, ...] = composite_statistics(options, *arguments)
    elif route == COMPILED:
        results = linear_token_statistics_in_a_graph(options, *arguments)
    else:
        differentiates = records_graph() and any(t is not None and t.requires_grad for t in arguments)
        if differentiates:
            results = LinearTokenStatisticsFunction.apply(*arguments, options)  # type: ignore[no-untyped-call]
        else:
            results = fused_linear_token_statistics(options, *arguments)[:-1]
    return TokenStatistics(*(result.view(layer.positions()) for result in results))


def reason_against_statistics_by_chunks(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    ignore_index: int,
) -> str | None:
    """Why torch's operators compute this call of :func:`linear_token_statistics`, or ``None``."""
    return _statistics_asked(input, linear_weight, target, linear_bias, logit_scale, softcap, ignore_index)[-1]


def _statistics_asked(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    ignore_index: int,
) -> tuple[LinearLayer, tuple[float, float, int], str | None]:
    """The layer, the options, and why torch's operators compute the statistics; errors of what fits nowhere."""
    terms = row_terms(logit_scale, softcap, 0.0, 0.0)
    if linear_weight.dim() != 2:
        raise RuntimeError(f"expected linear_weight with dimensionality 2, got {linear_weight.dim()}")
    layer = checked_layer(input, linear_weight, linear_bias)
    options = (terms.logit_scale, terms.softcap, ignore_index)
    if target.shape != layer.positions():
        raise layer.error_of_target(target)
    if target.dtype not in INDEX_DTYPES:
        raise ValueError(f"targets must be class indices, not {target.dtype}")
    require_floating_point(input)
    if has_overrides(input, linear_weight, linear_bias, target):
        return layer, options, OVERRIDDEN
    reason = (
        _against_layer(layer, target, None)
        or layer.refusal_of_types()
        or refusal_of_statistics(layer.stand_in(), target.flatten(), *options)
    )
    if reason is None and kernel_route() == WATCHED:
        reason = SEEN_BY_TORCH
    return layer, options, reason


def _torch_takes(input: Tensor, target: Tensor) -> bool:
    """Whether torch's function does: not what is beyond it. Only plain tensors are asked, no subclass or proxy."""
    has_rows_of_rows = type(input) is Tensor and input.dim() > 2
    return not (has_rows_of_rows or (type(target) is Tensor and target.dtype == torch.int32))


def _refusal(
    layer: LinearLayer,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> str | None:
    """Why the call is no problem for us, or ``None``: torch knows the error, if it is one."""
    reason = refusal_of_reduction(reduction)
    if reason is None and is_compiling():  # sizes that depend on data cannot be compared either
        reason = reason_of_size(layer.input)
    elif reason is None and layer.num_classes() == 0:
        reason = "there are no classes"
    return reason or layer.refusal(target, weight, ignore_index, label_smoothing)


def _against_chunks(
    layer: LinearLayer, target: Tensor, weight: Tensor | None, token_weight: Tensor | None, terms: RowTerms
) -> str | None:
    """Why torch's operators compute the loss, or ``None`` where it is computed by chunks."""
    reason = _against_layer(layer, target, weight, token_weight)
    if reason is None and kernel_route() == WATCHED:
        return SEEN_BY_TORCH
    return reason or refusal_of_terms(layer.input, terms)


def _against_layer(layer: LinearLayer, target: Tensor, *others: Tensor | None) -> str | None:
    """Of the tensors; ``others``: weight of classes, and tensors that may be differentiated as the layer's may."""
    input, linear_weight, bias = layer
    class_weight, *differentiable = others
    reason = reason_for_torch(input, target, class_weight)
    for tensor in (linear_weight, bias, *differentiable):
        if reason is None and tensor is not None:
            reason = reason_of_companion(tensor, input) or reason_of_size(tensor)
    return reason


def _chunk_rows(options: Any, layer: LinearLayer, target: Tensor, label_smoothing: float) -> int | None:
    """Of torch's options, or of what has their ``batch_chunk_size``.

    Raises:
        ValueError: torch's, of a size and a method that disagree, where torch would look at them.
    """
    size: int | None = getattr(options, "batch_chunk_size", None)
    is_torchs = len(layer.inner()) == 0 and label_smoothing == 0 and target.dtype == torch.int64
    if size is not None and is_torchs and hasattr(options, "_adjust"):
        input = layer.input
        options._adjust(layer.num_rows(), input.shape[-1], layer.num_classes(), input.dtype, input.device)
    return size


def _by_torch(
    layer: LinearLayer,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """As torch computes it, and with its errors."""
    input, linear_weight, bias = layer
    if input.dim() > 2:
        if not layer.fits(target):  # of rows that are one axis it would
            raise layer.error_of_target(target)
        input, target = input.flatten(0, -2), layer.rows_of_target(target)
    logits_shape = (*input.shape[:-1], *linear_weight.shape[:-1])
    logits = F.linear(input, linear_weight.flatten(0, -2), None if bias is None else bias.flatten())
    return torch_function("cross_entropy")(
        logits.reshape(logits_shape),
        target,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )


if _torch_linear_cross_entropy is not None:
    mark_as_replacement(linear_cross_entropy, _torch_linear_cross_entropy)
