"""torchvision: ``torchvision.ops.sigmoid_focal_loss``, and so the losses of its RetinaNet and FCOS."""

from __future__ import annotations

import torchvision.ops
from torch import Tensor

from .. import functional
from ..held_functions import exchange_everywhere
from ..torch_losses import mark_as_replacement

__all__ = ["disable", "enable", "is_enabled", "sigmoid_focal_loss"]

_stock = torchvision.ops.sigmoid_focal_loss


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """torchvision's function of this name: see :func:`fused_losses.functional.sigmoid_focal_loss`."""
    return functional.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)


mark_as_replacement(sigmoid_focal_loss, _stock)  # TorchScript compiles torchvision's


def enable() -> None:
    """Replace the function in torchvision, and in every loaded module that imported it by name.

    May be called any number of times.
    """
    exchange_everywhere([(_stock, sigmoid_focal_loss)])


def disable() -> None:
    """Undo :func:`enable`, also in modules that were imported since."""
    exchange_everywhere([(sigmoid_focal_loss, _stock)])


def is_enabled() -> bool:
    """Whether torchvision's function is the fused one now."""
    return torchvision.ops.sigmoid_focal_loss is sigmoid_focal_loss
