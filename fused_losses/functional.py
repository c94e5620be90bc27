"""The losses under the names, arguments and defaults of :mod:`torch.nn.functional`, and the statistics of tokens.

Each function computes on the fused kernels where they apply and calls torch's own function everywhere else, which also
says what is wrong with a call: ``docs/routing.md`` lists which calls go where.

Note [Defaults of numbers]
Numbers are 0 and 1 by default, not 0.0 and 1.0: of each default that is a float Dynamo makes a symbol where shapes are
dynamic, and traces the function a second time when it finds that nothing depends on it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import _reduction as _Reduction
from torch.overrides import handle_torch_function

from .autograd.binary_cross_entropy import fused_binary_cross_entropy
from .autograd.binary_cross_entropy_with_logits import fused_binary_cross_entropy_with_logits
from .autograd.cross_entropy import fused_cross_entropy
from .autograd.nll_loss import fused_nll_loss
from .beyond_torch import cross_entropy_beyond_torch
from .focal import sigmoid_focal_loss
from .linear_losses import linear_cross_entropy, linear_token_statistics
from .operators.elementwise import autocast_dtype
from .operators.registration import REDUCTIONS, refusal_of_reduction
from .operators.row_terms import row_terms
from .route_log import note
from .routing import OVERRIDDEN, has_overrides, is_dtensor, kernel_route, promotes, without_waiting_wrapper
from .tokens import TokenStatistics, token_statistics
from .torch_losses import mark_as_replacement, torch_function
from .trl_functions import entropy_from_logits, selective_log_softmax, selective_log_softmax_and_entropy
from .ways import (
    against_binary_cross_entropy,
    against_binary_cross_entropy_with_logits,
    against_cross_entropy,
    against_nll_loss,
    loss_of_dtensors,
)

__all__ = [
    "TokenStatistics",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "entropy_from_logits",
    "linear_cross_entropy",
    "linear_token_statistics",
    "nll_loss",
    "selective_log_softmax",
    "selective_log_softmax_and_entropy",
    "sigmoid_focal_loss",
    "token_statistics",
]

_NUMBERS = (int, float)

_torch_cross_entropy = torch_function("cross_entropy")
_torch_nll_loss = torch_function("nll_loss")
_torch_binary_cross_entropy = torch_function("binary_cross_entropy")
_torch_binary_cross_entropy_with_logits = torch_function("binary_cross_entropy_with_logits")


def _current_reduction(reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """What the deprecated arguments mean, with torch's warning. Whoever computes the loss is not given them again."""
    if size_average is None and reduce is None:
        return reduction
    return _Reduction.legacy_get_string(size_average, reduce)


def _torch_target(target: Tensor) -> Tensor:
    """int32 class indices, which torch does not take, as it takes them."""
    return target.long() if isinstance(target, Tensor) and target.dtype == torch.int32 else target


def _target_handed_over(target: Tensor) -> Tensor:
    """The same for a call that is handed over. Of a subclass nothing is asked, since its handler would answer, and no
    mode sees the question."""
    if type(target) is not Tensor:
        return target
    with torch._C.DisableTorchFunction():
        return _torch_target(target)


def _number_handed_over(number: float) -> float:
    """With the type of torch's default: ours is 0, see Note [Defaults of numbers]."""
    return float(number) if type(number) is int else number


def _autocast_target(target: Tensor) -> Tensor:
    dtype = autocast_dtype(target)
    return target if dtype == target.dtype else target.to(dtype)


def _checked_reduction(reduction: str) -> str:
    if (reason := refusal_of_reduction(reduction)) is not None:
        raise ValueError(reason)
    return reduction


def _kernel_route(loss: str) -> str:
    route = kernel_route()
    note(loss, route)
    return route


def _note_handed_over(loss: str, input: Tensor) -> None:
    """Logits of ours that do not exist yet take the call to a kernel, which counts it."""
    if not type(input).__module__.startswith("fused_losses."):
        note(loss, f"torch: {OVERRIDDEN}")


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0,
    *,
    inplace_gradient: bool = False,
    logit_scale: float = 1,
    softcap: float | None = None,
    lse_square_scale: float = 0,
    focal_gamma: float = 0,
    token_weight: Tensor | None = None,
) -> Tensor:
    r"""Softmax cross-entropy of logits, as :func:`torch.nn.functional.cross_entropy`.

    .. math::
        \ell_n = -\sum_c q_{nc} \log \frac{\exp x_{nc}}{\sum_k \exp x_{nk}}

    with :math:`q_n` the one-hot or given probabilities, smoothed and weighted. Beyond torch, of the logits :math:`l`

    .. math::
        x_{nc} = s \tanh(a\, l_{nc} / s), \qquad
        \ell_n = w_n \left( (1 - p_{n t_n})^\gamma\, \ell_n^\text{plain} + z \log^2 \sum_c \exp x_{nc} \right)

    with ``logit_scale`` :math:`a`, ``softcap`` :math:`s` (without: :math:`x = a\, l`), ``focal_gamma`` :math:`\gamma`,
    ``lse_square_scale`` :math:`z` and ``token_weight`` :math:`w`.

    Args:
        input: logits; float32, float64, bfloat16 or float16 on the fused kernels.
        target: class indices (int64, uint8 or, beyond torch, int32) or probabilities.
        weight: one weight per class, of the input's type.
        size_average: deprecated, see ``reduction``.
        ignore_index: the class index that does not count.
        reduce: deprecated, see ``reduction``.
        reduction: ``"none"``, ``"mean"`` (over the weights of the targets) or ``"sum"``.
        label_smoothing: in :math:`[0, 1]`.
        inplace_gradient: beyond torch: let the backward write the gradient into the memory of ``input``, which
            therefore must not be a leaf. Who else needs it in the backward gets torch's usual error.
        logit_scale: beyond torch: a finite number other than 0; the inverse of a temperature.
        softcap: beyond torch: a positive number, or ``None``.
        lse_square_scale: beyond torch: the weight of the z-loss, which class weights do not multiply.
        focal_gamma: beyond torch: the exponent of the focal loss, for class indices without label smoothing.
        token_weight: beyond torch: a factor of each loss, also a negative one. The mean divides by what it divides by
            without these weights. A class index of weight 0 counts as an ignored one does, unless the weights are
            differentiated.

    Shape:
        - input: :math:`(C)`, :math:`(N, C)` or :math:`(N, C, d_1, \dots, d_K)`.
        - target: indices without the class axis, or probabilities of the input's shape.
        - token_weight: the input's shape without the class axis.

    Returns:
        A scalar, or the losses in the shape of index targets with ``reduction="none"``.

    Raises:
        IndexError: a class index is neither in :math:`[0, C)` nor ``ignore_index``.
        RuntimeError, ValueError, TypeError: as torch's function.
        ValueError: an option beyond torch's is out of range, or ``token_weight`` has another shape.
        TypeError: one of the scales is a tensor, or ``token_weight`` is no tensor of real numbers.

    Example::

        >>> logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]], requires_grad=True)
        >>> loss = cross_entropy(logits, torch.tensor([3]))
        >>> round(loss.item(), 4)
        0.4402
        >>> loss.backward()

    Source: `Rethinking the Inception Architecture <https://arxiv.org/abs/1512.00567>`_ for label smoothing, `Gemma 2
    <https://arxiv.org/abs/2408.00118>`_ for the softcap, `PaLM <https://arxiv.org/abs/2204.02311>`_ for the z-loss,
    `Focal Loss for Dense Object Detection <https://arxiv.org/abs/1708.02002>`_.
    """
    is_torchs = softcap is None and logit_scale == 1 and lse_square_scale == 0 and focal_gamma == 0
    # A tensor, too, may be equal to a default; it is refused.
    is_torchs &= type(logit_scale) in _NUMBERS and type(lse_square_scale) in _NUMBERS and type(focal_gamma) in _NUMBERS
    if not (is_torchs and token_weight is None):
        if has_overrides(input, target, weight, token_weight):
            return handle_torch_function(  # of ours: torch has none that takes these
                cross_entropy,
                (input, target, weight, token_weight),
                input,
                target,
                weight=weight,
                size_average=size_average,
                ignore_index=ignore_index,
                reduce=reduce,
                reduction=reduction,
                label_smoothing=label_smoothing,
                inplace_gradient=inplace_gradient,
                logit_scale=logit_scale,
                softcap=softcap,
                lse_square_scale=lse_square_scale,
                focal_gamma=focal_gamma,
                token_weight=token_weight,
            )
        return cross_entropy_beyond_torch(
            input,
            target,
            weight,
            REDUCTIONS[_checked_reduction(_current_reduction(reduction, size_average, reduce))],
            ignore_index,
            label_smoothing,
            row_terms(logit_scale, softcap, lse_square_scale, focal_gamma),
            token_weight,
            inplace_gradient,
        )
    if has_overrides(input, target, weight):
        _note_handed_over("cross_entropy", input)
        return handle_torch_function(
            _torch_cross_entropy,
            (input, target, weight),
            input,
            _target_handed_over(target),
            weight=weight,
            size_average=size_average,
            ignore_index=ignore_index,
            reduce=reduce,
            reduction=reduction,
            label_smoothing=_number_handed_over(label_smoothing),
        )
    wrapper, input = input, without_waiting_wrapper(input)
    reduction = _current_reduction(reduction, size_average, reduce)
    reason = against_cross_entropy(input, target, weight, reduction, ignore_index, label_smoothing)
    if reason is not None and is_dtensor(input):
        loss, reason = loss_of_dtensors(
            "cross_entropy", input, target, (weight,), reduction, (ignore_index, label_smoothing)
        )
        if loss is not None:
            return loss
    if reason is None:
        options = (REDUCTIONS[reduction], ignore_index, label_smoothing, promotes(input))
        return fused_cross_entropy(
            _kernel_route("cross_entropy"), input, target, weight, *options, inplace_gradient and input is wrapper
        )
    note("cross_entropy", f"torch: {reason}")
    target = _torch_target(target)
    return _torch_cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Negative log-likelihood of log-probabilities, as :func:`torch.nn.functional.nll_loss`.

    .. math::
        \ell_n = -w_{t_n} x_{n t_n}

    Args:
        input: log-probabilities; float32, float64, bfloat16 or float16 on the fused kernels.
        target: class indices (int64, uint8 or, beyond torch, int32).
        weight: one weight per class, of the input's type.
        size_average: deprecated, see ``reduction``.
        ignore_index: the class index that does not count.
        reduce: deprecated, see ``reduction``.
        reduction: ``"none"``, ``"mean"`` (over the weights of the targets) or ``"sum"``.

    Shape:
        - input: :math:`(C)`, :math:`(N, C)` or :math:`(N, C, d_1, \dots, d_K)`.
        - target: the input's shape without the class axis.

    Returns:
        A scalar, or the losses in the target's shape with ``reduction="none"``.

    Raises:
        IndexError: a class index is neither in :math:`[0, C)` nor ``ignore_index``.
        RuntimeError, ValueError, TypeError: as torch's function.

    Example::

        >>> loss = nll_loss(torch.tensor([[-0.6, -0.5, -0.3]]), torch.tensor([1]))
        >>> round(loss.item(), 4)
        0.5

    Source: the documentation of :class:`torch.nn.NLLLoss`.
    """
    if has_overrides(input, target, weight):
        _note_handed_over("nll_loss", input)
        return handle_torch_function(
            _torch_nll_loss,
            (input, target, weight),
            input,
            _target_handed_over(target),
            weight=weight,
            size_average=size_average,
            ignore_index=ignore_index,
            reduce=reduce,
            reduction=reduction,
        )
    input = without_waiting_wrapper(input)
    reduction = _current_reduction(reduction, size_average, reduce)
    reason = against_nll_loss(input, target, weight, reduction, ignore_index)
    if reason is not None and is_dtensor(input):
        loss, reason = loss_of_dtensors("nll_loss", input, target, (weight,), reduction, (ignore_index,))
        if loss is not None:
            return loss
    if reason is None:
        options = (REDUCTIONS[reduction], ignore_index, promotes(input))
        return fused_nll_loss(_kernel_route("nll_loss"), input, target, weight, *options)
    note("nll_loss", f"torch: {reason}")
    target = _torch_target(target)
    return _torch_nll_loss(input, target, weight, ignore_index=ignore_index, reduction=reduction)


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Binary cross-entropy of probabilities, as :func:`torch.nn.functional.binary_cross_entropy`.

    .. math::
        \ell = -w \left( y \max(\log x, -100) + (1 - y) \max(\log(1 - x), -100) \right)

    Args:
        input: probabilities in :math:`[0, 1]`; float32, float64, bfloat16 or float16 on the fused kernels.
        target: of the input's shape and type, in :math:`[0, 1]`.
        weight: broadcast to the input's shape.
        size_average: deprecated, see ``reduction``.
        reduce: deprecated, see ``reduction``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Shape:
        - input, target: any, the same.

    Returns:
        A scalar, or the losses in the input's shape with ``reduction="none"``.

    Raises:
        RuntimeError: a value of input or target lies outside :math:`[0, 1]`; otherwise as torch's function.
        ValueError, TypeError: as torch's function.

    Example::

        >>> round(binary_cross_entropy(torch.tensor([0.75]), torch.tensor([1.0])).item(), 4)
        0.2877

    Source: the documentation of :class:`torch.nn.BCELoss`.
    """
    if has_overrides(input, target, weight):
        _note_handed_over("binary_cross_entropy", input)
        return handle_torch_function(
            _torch_binary_cross_entropy,
            (input, target, weight),
            input,
            target,
            weight=weight,
            size_average=size_average,
            reduce=reduce,
            reduction=reduction,
        )
    input = without_waiting_wrapper(input)
    reduction = _current_reduction(reduction, size_average, reduce)
    reason = against_binary_cross_entropy(input, target, weight, reduction)
    if reason is not None and is_dtensor(input):
        loss, reason = loss_of_dtensors("binary_cross_entropy", input, target, (weight,), reduction)
        if loss is not None:
            return loss
    if reason is None:
        route = _kernel_route("binary_cross_entropy")
        return fused_binary_cross_entropy(route, input, _autocast_target(target), weight, REDUCTIONS[reduction])
    note("binary_cross_entropy", f"torch: {reason}")
    return _torch_binary_cross_entropy(input, target, weight, reduction=reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    inplace_gradient: bool = False,
) -> Tensor:
    r"""Binary cross-entropy of logits, as :func:`torch.nn.functional.binary_cross_entropy_with_logits`.

    .. math::
        \ell = -w \left( p\, y \log \sigma(x) + (1 - y) \log \sigma(-x) \right)

    Infinite logits give the true value, 0 or infinity, where torch gives NaN.

    Args:
        input: logits :math:`x`; float32, float64, bfloat16 or float16 on the fused kernels.
        target: :math:`y`, of the input's shape; its type is the loss's.
        weight: :math:`w`, broadcast to the input's shape.
        size_average: deprecated, see ``reduction``.
        reduce: deprecated, see ``reduction``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        pos_weight: :math:`p`, broadcast to the input's shape.
        inplace_gradient: beyond torch: let the backward write the gradient into the memory of ``input``, which
            therefore must not be a leaf. Who else needs it in the backward gets torch's usual error.

    Shape:
        - input, target: any, the same.

    Returns:
        A scalar, or the losses in the input's shape with ``reduction="none"``.

    Raises:
        RuntimeError, ValueError, TypeError: as torch's function.

    Example::

        >>> loss = binary_cross_entropy_with_logits(torch.tensor([1.8, 0.75]), torch.tensor([1.0, 0.0]))
        >>> round(loss.item(), 4)
        0.6449

    Source: the documentation of :class:`torch.nn.BCEWithLogitsLoss`.
    """
    if has_overrides(input, target, weight, pos_weight):
        _note_handed_over("binary_cross_entropy_with_logits", input)
        return handle_torch_function(
            _torch_binary_cross_entropy_with_logits,
            (input, target, weight, pos_weight),
            input,
            target,
            weight=weight,
            size_average=size_average,
            reduce=reduce,
            reduction=reduction,
            pos_weight=pos_weight,
        )
    wrapper, input = input, without_waiting_wrapper(input)
    reduction = _current_reduction(reduction, size_average, reduce)
    reason = against_binary_cross_entropy_with_logits(input, target, weight, reduction, pos_weight)
    if reason is not None and is_dtensor(input):
        loss, reason = loss_of_dtensors(
            "binary_cross_entropy_with_logits", input, target, (weight, pos_weight), reduction
        )
        if loss is not None:
            return loss
    if reason is None:
        route = _kernel_route("binary_cross_entropy_with_logits")
        weights = (weight, pos_weight)
        return fused_binary_cross_entropy_with_logits(
            route,
            input,
            _autocast_target(target),
            *weights,
            REDUCTIONS[reduction],
            inplace_gradient and input is wrapper,
        )
    note("binary_cross_entropy_with_logits", f"torch: {reason}")
    return _torch_binary_cross_entropy_with_logits(input, target, weight, reduction=reduction, pos_weight=pos_weight)


for _function, _original in (
    (cross_entropy, _torch_cross_entropy),
    (nll_loss, _torch_nll_loss),
    (binary_cross_entropy, _torch_binary_cross_entropy),
    (binary_cross_entropy_with_logits, _torch_binary_cross_entropy_with_logits),
):
    mark_as_replacement(_function, _original)
