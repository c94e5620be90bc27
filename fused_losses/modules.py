"""The four loss modules of :mod:`torch.nn` on the fused kernels.

They are subclasses of torch's: ``isinstance`` checks, constructors and ``state_dict`` keys are torch's own, and so is
``repr``, which adds the options beyond torch's that are set.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import functional
from .operators.row_terms import RowTerms, row_terms

__all__ = ["BCELoss", "BCEWithLogitsLoss", "CrossEntropyLoss", "NLLLoss"]


def options_repr(module: nn.Module, *names: str) -> str:
    """Of the options beyond torch's those that are set. The class has their defaults."""
    return ", ".join(f"{name}={getattr(module, name)!r}" for name in names if _is_set(module, name))


def _is_set(module: nn.Module, name: str) -> bool:
    return bool(getattr(module, name) != getattr(type(module), name))


def is_beyond_torch(module: nn.Module) -> bool:
    """Whether options are set by which this module of ours computes another loss than torch's of its name."""
    return any(hasattr(type(module), name) and _is_set(module, name) for name in RowTerms._fields)


# TorchScript compiles only torch's own functions, hence the branches: it drops the one it does not take.


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """:class:`torch.nn.CrossEntropyLoss` computed by :func:`fused_losses.functional.cross_entropy`.

    Example::

        >>> loss = CrossEntropyLoss(weight=torch.tensor([1.3, 2.0]))
        >>> round(loss(torch.tensor([[1.3, 2.0], [1.3, 2.0]]), torch.tensor([1, 1])).item(), 4)
        0.4032

    Args:
        inplace_gradient: beyond torch's, by keyword: see :func:`fused_losses.functional.cross_entropy`.
        logit_scale, softcap, lse_square_scale, focal_gamma: likewise. ``token_weight`` is an argument of the call.
    """

    # Of modules that convert() made. TorchScript sees what is no attribute of the instance among the constants alone.
    __constants__ = ["logit_scale", "softcap", "lse_square_scale", "focal_gamma"]  # noqa: RUF012
    inplace_gradient = False
    logit_scale = 1.0
    softcap = cast("float | None", None)  # TorchScript reads no annotation here
    lse_square_scale = 0.0
    focal_gamma = 0.0

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        inplace_gradient: bool = False,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        lse_square_scale: float = 0.0,
        focal_gamma: float = 0.0,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        row_terms(logit_scale, softcap, lse_square_scale, focal_gamma)  # raises what the call would
        self.inplace_gradient = inplace_gradient
        self.logit_scale = float(logit_scale)
        self.softcap = softcap
        self.lse_square_scale = float(lse_square_scale)
        self.focal_gamma = float(focal_gamma)

    def extra_repr(self) -> str:
        return options_repr(self, "inplace_gradient", "logit_scale", "softcap", "lse_square_scale", "focal_gamma")

    def forward(self, input: Tensor, target: Tensor, token_weight: Tensor | None = None) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            scales = self.logit_scale != 1.0 or self.softcap is not None
            if scales or self.lse_square_scale != 0.0 or self.focal_gamma != 0.0 or token_weight is not None:
                raise RuntimeError("TorchScript has torch's cross-entropy alone, without options beyond torch's")
            return F.cross_entropy(
                input,
                target,
                weight=self.weight,
                ignore_index=self.ignore_index,
                reduction=self.reduction,
                label_smoothing=self.label_smoothing,
            )
        else:  # noqa: RET505
            return functional.cross_entropy(
                input,
                target,
                weight=self.weight,
                ignore_index=self.ignore_index,
                reduction=self.reduction,
                label_smoothing=self.label_smoothing,
                inplace_gradient=self.inplace_gradient,
                logit_scale=self.logit_scale,
                softcap=self.softcap,
                lse_square_scale=self.lse_square_scale,
                focal_gamma=self.focal_gamma,
                token_weight=token_weight,
            )


class NLLLoss(nn.NLLLoss):
    """:class:`torch.nn.NLLLoss` computed by :func:`fused_losses.functional.nll_loss`.

    Example::

        >>> round(NLLLoss()(torch.tensor([[-0.6, -0.5, -0.3]]), torch.tensor([1])).item(), 4)
        0.5
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.nll_loss(
                input, target, weight=self.weight, ignore_index=self.ignore_index, reduction=self.reduction
            )
        else:  # noqa: RET505
            return functional.nll_loss(
                input, target, weight=self.weight, ignore_index=self.ignore_index, reduction=self.reduction
            )


class BCELoss(nn.BCELoss):
    """:class:`torch.nn.BCELoss` computed by :func:`fused_losses.functional.binary_cross_entropy`.

    Example::

        >>> round(BCELoss()(torch.tensor([0.75]), torch.tensor([1.0])).item(), 4)
        0.2877
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.binary_cross_entropy(input, target, weight=self.weight, reduction=self.reduction)
        else:  # noqa: RET505
            return functional.binary_cross_entropy(input, target, weight=self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """:class:`torch.nn.BCEWithLogitsLoss` computed by
    :func:`fused_losses.functional.binary_cross_entropy_with_logits`.

    Example::

        >>> loss = BCEWithLogitsLoss(pos_weight=torch.ones(3))
        >>> round(loss(torch.full([2, 3], 1.0), torch.ones([2, 3])).item(), 4)
        0.3133

    Args:
        inplace_gradient: beyond torch's, by keyword: see
            :func:`fused_losses.functional.binary_cross_entropy_with_logits`.
    """

    inplace_gradient = False  # of modules that convert() made

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        *,
        inplace_gradient: bool = False,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction, pos_weight)
        self.inplace_gradient = inplace_gradient

    def extra_repr(self) -> str:
        return options_repr(self, "inplace_gradient")

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.binary_cross_entropy_with_logits(
                input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
            )
        else:  # noqa: RET505
            return functional.binary_cross_entropy_with_logits(
                input,
                target,
                self.weight,
                pos_weight=self.pos_weight,
                reduction=self.reduction,
                inplace_gradient=self.inplace_gradient,
            )
