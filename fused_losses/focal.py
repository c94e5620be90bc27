"""The focal loss of object detection, of which nothing of the logits' size is made but the gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from .operators.registration import REDUCTIONS, call
from .operators.sigmoid_focal_loss import composite, refusal
from .route_log import note
from .routing import OVERRIDDEN, has_overrides, kernel_route, promotes, reason_for_torch

__all__ = ["sigmoid_focal_loss"]


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    r"""The focal loss of binary classification, as :func:`torchvision.ops.sigmoid_focal_loss`.

    .. math::
        \ell = \alpha_y\, (1 - p_y)^\gamma\, \ell^\text{BCE}, \quad
        p_y = y\, \sigma(x) + (1 - y)\, \sigma(-x), \quad
        \alpha_y = y \alpha + (1 - y)(1 - \alpha)

    Args:
        inputs: logits :math:`x`; float32, float64, bfloat16 or float16.
        targets: :math:`y` in :math:`[0, 1]`, of the logits' shape; its type is the loss's.
        alpha: in :math:`[0, 1]`, or -1: no weights. One of them may be a tensor of one number, which torch's operators
            differentiate.
        gamma: not negative; likewise.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Shape:
        - inputs, targets: any, the same.

    Returns:
        A scalar, or the losses in the logits' shape with ``reduction="none"``.

    Raises:
        ValueError: an option is out of range, or the shapes are not the same.

    Example::

        >>> logits = torch.tensor([1.8, 0.75])
        >>> loss = sigmoid_focal_loss(logits, torch.tensor([1.0, 0.0]), reduction="mean")
        >>> round(loss.item(), 4)
        0.197

    Source: `Focal Loss for Dense Object Detection <https://arxiv.org/abs/1708.02002>`_; names, defaults and errors are
    torchvision's, which takes a negative ``gamma`` too and gives infinities.
    """
    if has_overrides(inputs, targets):
        return handle_torch_function(
            sigmoid_focal_loss, (inputs, targets), inputs, targets, alpha=alpha, gamma=gamma, reduction=reduction
        )
    targets, options, reason = _asked(inputs, targets, alpha, gamma, reduction)
    if reason is None:
        note("sigmoid_focal_loss", kernel_route())
        loss: Tensor = call("sigmoid_focal_loss", inputs, targets, *options)
        return loss
    note("sigmoid_focal_loss", f"torch: {reason}")
    return composite(*options, inputs, targets.to(torch.promote_types(inputs.dtype, targets.dtype)))


def reason_against_sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: str
) -> str | None:
    """Why torch's operators compute this call of :func:`sigmoid_focal_loss`, or ``None``."""
    return OVERRIDDEN if has_overrides(inputs, targets) else _asked(inputs, targets, alpha, gamma, reduction)[-1]


def _asked(
    inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: str
) -> tuple[Tensor, tuple[float, float, int], str | None]:
    """The targets and options that the operators take, and why they do not take the call. Errors are torchvision's."""
    if not (0 <= alpha <= 1 or alpha == -1):
        raise ValueError(f"Invalid alpha value: {alpha}. alpha must be in the range [0,1] or -1 for ignore.")
    if not gamma >= 0:
        raise ValueError(f"Invalid gamma value: {gamma}. gamma must not be negative.")
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"Invalid Value for arg 'reduction': '{reduction} \n Supported reduction modes: 'none', 'mean', 'sum'"
        )
    if promotes(inputs) and targets.dtype.itemsize == 2:
        targets = targets.float()
    if isinstance(alpha, Tensor) or isinstance(gamma, Tensor):
        return targets, (alpha, gamma, REDUCTIONS[reduction]), "alpha or gamma is a tensor"
    options = (float(alpha), float(gamma), REDUCTIONS[reduction])
    return targets, options, reason_for_torch(inputs, targets) or refusal(inputs, targets)
