"""Losses of a linear layer that never make the tensor of its logits: of language models and of large catalogues."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function

from .autograd.linear_cross_entropy import fused_linear_cross_entropy
from .autograd.linear_operator import linear_cross_entropy_in_a_graph
from .autograd.linear_token_statistics import LinearTokenStatisticsFunction, fused_linear_token_statistics
from .operators.class_axis import FLOAT_DTYPES, INDEX_DTYPES, accumulation_dtype
from .operators.cross_entropy import refusal as refusal_of_cross_entropy
from .operators.linear_cross_entropy import LinearLossOptions, composite, composite_statistics
from .operators.row_terms import row_terms
from .operators.token_statistics import refusal as refusal_of_statistics
from .operators.token_statistics import refusal_of_scales
from .route_log import COMPILED, EAGER, note
from .routing import has_overrides, is_autocast, kernel_route, promotes, reason_for_torch
from .tokens import TokenStatistics
from .torch_losses import LINEAR_CROSS_ENTROPY, mark_as_replacement, torch_function

__all__ = ["linear_cross_entropy", "linear_token_statistics"]

_WATCHED = "a transform, a mode or a graph sees torch's operators"
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
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
    label_smoothing: float = 0.0,
    options: Any = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    lse_square_scale: float = 0.0,
    token_weight: Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy of a linear layer, as :func:`torch.nn.functional.linear_cross_entropy`, without the logits.

    .. math::
        l = x W^\top + b, \qquad
        z_c = s \tanh(a\, l_c / s), \qquad
        \ell_n = \tau_n \left( H(q_n, \operatorname{softmax}(z_n)) + \lambda \Big(\log \sum_c e^{z_{nc}}\Big)^2 \right)

    with :func:`~fused_losses.functional.cross_entropy` :math:`H`, ``logit_scale`` :math:`a`, ``softcap`` :math:`s`,
    ``lse_square_scale`` :math:`\lambda` and ``token_weight`` :math:`\tau`. By default :math:`z = l` and
    :math:`\ell = H`. The logits exist a chunk of rows at a time, in float32 where the input has 16 bits; a mean or a
    sum computes its gradients with them. Rows that are ignored, or of token weight 0, cost nothing.

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
        ValueError: ``softcap`` or ``logit_scale`` is out of range, or ``token_weight`` has another shape.
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
    if overridden and is_torchs and _torch_linear_cross_entropy is not None:
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
    layer = _checked_layer(input, linear_weight, linear_bias)
    if layer.holds_probabilities(target) and ignore_index is not None:
        raise RuntimeError("ignore_index cannot be specified when target contains probabilities")
    ignore_index = -100 if ignore_index is None else ignore_index
    if reduction in _REDUCTIONS:
        reason_against = layer.refusal(target, weight, ignore_index, label_smoothing)
    else:
        reason_against = "the reduction is none of 'none', 'mean' and 'sum'"
    if reason_against is not None:
        if not is_torchs:
            raise ValueError(f"linear_cross_entropy with options beyond torch's: {reason_against}")
        note(LINEAR_CROSS_ENTROPY, f"torch: {reason_against}")
        return _by_torch(layer, target, weight, reduction, ignore_index, label_smoothing)
    if token_weight is not None and token_weight.shape != layer.positions:
        raise ValueError(f"Expected token_weight of shape {list(layer.positions)}, got {list(token_weight.shape)}")
    loss_options = LinearLossOptions(
        layer.num_classes,
        _REDUCTIONS[reduction],
        ignore_index,
        label_smoothing,
        terms.logit_scale,
        terms.softcap,
        terms.lse_square_scale,
        layer.loss_dtype(target),
    )
    arguments = (
        *layer.autocast(),
        layer.rows_of_target(target),
        weight,
        None if token_weight is None else layer.rows_of_positions(token_weight),
    )
    reason = "a subclass or a mode overrides torch's functions" if overridden else _against_chunks(*arguments)
    reason = reason or refusal_of_scales(layer.input, loss_options.logit_scale, loss_options.softcap)
    chunk_rows = getattr(options, "batch_chunk_size", None)
    if reason is None and (route := kernel_route()) != EAGER:
        wants_token_weight = token_weight is not None and token_weight.requires_grad and torch.is_grad_enabled()
        if route == COMPILED and loss_options.reduction and not wants_token_weight:
            note(LINEAR_CROSS_ENTROPY, COMPILED)
            return linear_cross_entropy_in_a_graph(loss_options, chunk_rows, *arguments)
        reason = _WATCHED
    if reason is None:
        note(LINEAR_CROSS_ENTROPY, EAGER)
        loss = fused_linear_cross_entropy(loss_options, chunk_rows, *arguments)
    else:
        note(LINEAR_CROSS_ENTROPY, f"torch: {reason}")
        loss = composite(loss_options, *arguments)
    return loss if loss_options.reduction else loss.reshape(layer.positions)


def linear_token_statistics(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    logit_scale: float = 1.0,
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
        RuntimeError: the shapes of input, weight and bias do not fit.

    Example::

        >>> hidden, head = torch.ones(2, 3, requires_grad=True), torch.tensor([[0.1] * 3, [0.2] * 3])
        >>> tokens = linear_token_statistics(hidden, head, torch.tensor([1, 0]))
        >>> [round(value, 4) for value in tokens.log_prob.tolist()]
        [-0.5544, -0.8544]

    Source: `Group Relative Policy Optimization <https://arxiv.org/abs/2402.03300>`_ asks for these.
    """
    terms = row_terms(logit_scale, softcap, 0.0, 0.0)
    if linear_weight.dim() != 2:
        raise RuntimeError(f"expected linear_weight with dimensionality 2, got {linear_weight.dim()}")
    layer = _checked_layer(input, linear_weight, linear_bias)
    options = (terms.logit_scale, terms.softcap, ignore_index)
    if target.shape != layer.positions:
        raise ValueError(
            f"Expected target of shape {list(layer.positions)} for an input of shape {list(input.shape)}, "
            f"got {list(target.shape)}"
        )
    if target.dtype not in INDEX_DTYPES:
        raise ValueError(f"targets must be class indices, not {target.dtype}")
    arguments = (*layer.autocast(), target.flatten())
    reason = (
        "a subclass or a mode overrides torch's functions"
        if has_overrides(input, linear_weight, linear_bias, target)
        else _against_chunks(*arguments) or refusal_of_statistics(layer.stand_in(), target.flatten(), *options)
    )
    if reason is None and kernel_route() != EAGER:
        reason = _WATCHED
    if reason is not None:
        note("linear_token_statistics", f"torch: {reason}")
        results: tuple[Tensor, ...] = composite_statistics(options, *arguments)
    else:
        note("linear_token_statistics", EAGER)
        differentiates = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments)
        if differentiates:
            results = LinearTokenStatisticsFunction.apply(*arguments, options)  # type: ignore[no-untyped-call]
        else:
            results = fused_linear_token_statistics(options, *arguments)
    return TokenStatistics(*(result.view(layer.positions) for result in results))


class _Layer(NamedTuple):
    """A linear layer whose shapes fit, as (N, F) and (C * D, F) where it is computed."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def num_classes(self) -> int:
        return self.weight.shape[0]

    @property
    def inner(self) -> tuple[int, ...]:
        """(d1, ..., dK)."""
        return tuple(self.weight.shape[1:-1])

    @property
    def positions(self) -> tuple[int, ...]:
        """The shape of the losses."""
        return (*self.input.shape[:-1], *self.inner)

    def holds_probabilities(self, target: Tensor) -> bool:
        return target.shape == (*self.input.shape[:-1], self.num_classes, *self.inner)

    def _num_rows(self) -> int:
        return math.prod(self.input.shape[:-1])

    def rows_of_positions(self, tensor: Tensor) -> Tensor:
        """(N) or (N, D)."""
        return tensor.reshape(self._num_rows(), math.prod(self.inner)) if self.inner else tensor.reshape(-1)

    def rows_of_target(self, target: Tensor) -> Tensor:
        """The positions, or (N, C) or (N, C, D)."""
        if not self.holds_probabilities(target):
            return self.rows_of_positions(target)
        sizes = (self._num_rows(), self.num_classes)
        return target.reshape(*sizes, math.prod(self.inner)) if self.inner else target.reshape(sizes)

    def autocast(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, weight and bias as rows, of the types that autocast gives a linear layer."""
        num_logits = math.prod(self.weight.shape[:-1])
        input = self.input.reshape(self._num_rows(), self.input.shape[-1])
        weight = self.weight if self.weight.dim() == 2 else self.weight.reshape(num_logits, self.weight.shape[-1])
        bias = self.bias if self.bias is None or self.bias.dim() == 1 else self.bias.reshape(num_logits)
        if not is_autocast(input):
            return input, weight, bias
        return _cast(input), _cast(weight), None if bias is None else _cast(bias)

    def stand_in(self) -> Tensor:
        """No logits, but of their shape and type."""
        input = self.input
        dtype = torch.get_autocast_dtype(input.device.type) if _is_cast(input) else input.dtype
        sizes = (self._num_rows(), self.num_classes, *([math.prod(self.inner)] if self.inner else []))
        return input.new_empty((1,), dtype=dtype).expand(sizes)

    def refusal(
        self, target: Tensor, class_weight: Tensor | None, ignore_index: int, label_smoothing: float
    ) -> str | None:
        """Why this is no problem for us, or ``None``: torch knows the error, if it is one."""
        dtypes = {tensor.dtype for tensor in (self.input, self.weight, self.bias) if tensor is not None}
        if not is_autocast(self.input) and len(dtypes) > 1:
            return "input, weight and bias are of several types"
        if (torch.float64 in dtypes and len(dtypes) > 1) or not dtypes <= FLOAT_DTYPES:
            return "there is no kernel for these types"
        if not self.holds_probabilities(target) and target.shape != self.positions:
            return "the target's shape does not fit"
        logits = self.stand_in()
        return refusal_of_cross_entropy(
            logits, self.rows_of_target(target), class_weight, ignore_index, label_smoothing, promotes(logits)
        )

    def loss_dtype(self, target: Tensor) -> torch.dtype:
        logits = self.stand_in()
        by_probability = target.is_floating_point() and target.dtype != logits.dtype
        return accumulation_dtype(logits.dtype) if promotes(logits) or by_probability else logits.dtype


def _is_cast(tensor: Tensor) -> bool:
    return is_autocast(tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64


def _cast(tensor: Tensor) -> Tensor:
    return tensor.to(torch.get_autocast_dtype(tensor.device.type)) if _is_cast(tensor) else tensor


def _checked_layer(input: Tensor, weight: Tensor, bias: Tensor | None) -> _Layer:
    """With torch's errors, but for an input of more than two axes."""
    if input.dim() < 1 or (input.dim() > 2 and weight.dim() > 2):
        raise RuntimeError(f"expected input with dimensionality 1 or 2, got {input.dim()}")
    if weight.dim() < 2:
        raise RuntimeError(f"expected linear_weight with dimensionality at least 2, got {weight.dim()}")
    if input.shape[-1] != weight.shape[-1]:
        raise RuntimeError(
            "expected equal input and linear_weight last dimensions (in_features), "
            f"got {input.shape[-1]} and {weight.shape[-1]}, respectively"
        )
    if bias is not None and bias.shape != weight.shape[:-1]:
        raise RuntimeError(f"expected linear_bias shape {tuple(weight.shape[:-1])}, got {tuple(bias.shape)}")
    if weight.dim() > 2 and input.dim() == 1:
        raise RuntimeError(
            f"K-dimensional loss defined by linear_weight shape {tuple(weight.shape)} requires batched input, "
            f"(N, {input.shape[-1]}), got unbatched input with shape {tuple(input.shape)}"
        )
    return _Layer(input, weight, bias)


def _against_chunks(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None = None,
    token_weight: Tensor | None = None,
) -> str | None:
    """Why torch's operators compute the loss, or ``None`` where it is computed by chunks."""
    reason = reason_for_torch(input, target, class_weight)
    for tensor in (weight, bias, token_weight):
        if reason is None and tensor is not None:
            reason = reason_for_torch(tensor, input.detach())
    if reason is None and not input.is_cpu:
        return "there are no kernels for linear layers on this device"
    return reason


def _by_torch(
    layer: _Layer, target: Tensor, weight: Tensor | None, reduction: str, ignore_index: int, label_smoothing: float
) -> Tensor:
    """As torch computes it, and with its errors."""
    input, linear_weight, bias = layer
    if input.dim() > 2:
        input = input.flatten(0, -2)
        target = layer.rows_of_target(target) if target.numel() % max(1, input.shape[0]) == 0 else target
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
