"""timm: its losses of classes on the fused kernels, by :func:`enable` everywhere or by ``convert()`` in one model.

``JsdCrossEntropy`` needs nothing of its own: the cross-entropy that it holds is one of those that are replaced. Its
divergence between splits stays timm's, as do the losses that are no cross-entropy.
"""

from __future__ import annotations

import copy

import torch
from timm import loss as timm_loss
from torch import Tensor, nn

from .. import functional
from ..operators.class_axis import NO_INDEX
from ..routing import is_autocast

__all__ = ["FUSED_CLASSES", "BinaryCrossEntropy", "LabelSmoothingCrossEntropy", "SoftTargetCrossEntropy"]
__all__ += ["disable", "enable", "is_enabled"]


class LabelSmoothingCrossEntropy(timm_loss.LabelSmoothingCrossEntropy):  # type: ignore[misc]
    """timm's of this name, computed by :func:`fused_losses.functional.cross_entropy`."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        is_smoothing = self.smoothing >= 0.0 and self.confidence == 1.0 - self.smoothing
        if not (is_smoothing and x.dim() == 2 and target.shape == x.shape[:1]):
            return _stock(self, x, target)
        # A negative target is an error, as timm's.
        return functional.cross_entropy(x, target, ignore_index=NO_INDEX, label_smoothing=self.smoothing)


class SoftTargetCrossEntropy(timm_loss.SoftTargetCrossEntropy):  # type: ignore[misc]
    """timm's of this name, computed by :func:`fused_losses.functional.cross_entropy`."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        is_of_one_type = target.is_floating_point() and (x.dtype == target.dtype or is_autocast(x))
        if not (is_of_one_type and x.dim() >= 2 and x.shape == target.shape):
            return _stock(self, x, target)
        return functional.cross_entropy(x.flatten(0, -2), target.flatten(0, -2))


class BinaryCrossEntropy(timm_loss.BinaryCrossEntropy):  # type: ignore[misc]
    """timm's of this name, computed by :func:`fused_losses.functional.binary_cross_entropy_with_logits`."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        assert len(x) == len(target)
        if target.shape != x.shape:
            off = self.smoothing / x.shape[-1]
            index = target.long().view(-1, 1)
            target = torch.full((len(x), x.shape[-1]), off, device=x.device, dtype=x.dtype)
            target = target.scatter_(1, index, 1.0 - self.smoothing + off)
        elif self.smooth_dense and self.smoothing:
            target = target * (1.0 - self.smoothing) + 0.5 * self.smoothing
        if self.target_threshold is not None:
            target = target.gt(self.target_threshold).to(target.dtype)
        losses = functional.binary_cross_entropy_with_logits(
            x, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )
        return losses.sum(-1).mean() if self.sum_classes else losses


FUSED_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    fused.__base__: fused for fused in (LabelSmoothingCrossEntropy, SoftTargetCrossEntropy, BinaryCrossEntropy)
}
_STOCK = {timms: timms.forward for timms in FUSED_CLASSES}
_SCRIPTABLE = {timms: type(timms.__name__, (timms,), {"forward": forward}) for timms, forward in _STOCK.items()}


def _prepare_scriptable(loss: nn.Module) -> nn.Module:
    """For TorchScript, which compiles timm's ``forward`` and not ours."""
    for timms, fused in FUSED_CLASSES.items():
        if type(loss).forward is fused.forward:
            loss = copy.copy(loss)
            loss.__class__ = _SCRIPTABLE[timms]
    return loss


for _fused in FUSED_CLASSES.values():
    _fused.__prepare_scriptable__ = _prepare_scriptable  # type: ignore[attr-defined]


def _stock(loss: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    result: Tensor = next(_STOCK[base] for base in type(loss).__mro__ if base in _STOCK)(loss, x, target)
    return result


def enable() -> None:
    """Let these classes of timm compute by the fused kernels, in instances that exist and in those to come.

    Subclasses with a ``forward`` of their own keep it. May be called any number of times.
    """
    for timms, fused in FUSED_CLASSES.items():
        timms.forward = fused.forward
        timms.__prepare_scriptable__ = _prepare_scriptable  # type: ignore[attr-defined]


def disable() -> None:
    """Undo :func:`enable`. What ``convert()`` changed is for ``revert()``."""
    for timms, forward in _STOCK.items():
        timms.forward = forward
        if "__prepare_scriptable__" in vars(timms):
            del timms.__prepare_scriptable__  # type: ignore[attr-defined]


def is_enabled() -> bool:
    """Whether timm's classes compute by the fused kernels now."""
    return any(timms.forward is not forward for timms, forward in _STOCK.items())
