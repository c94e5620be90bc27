"""The four loss modules of :mod:`torch.nn` on the fused kernels.

They are subclasses of torch's: ``isinstance`` checks, constructors, ``state_dict`` keys and ``repr`` are torch's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import functional

__all__ = ["BCELoss", "BCEWithLogitsLoss", "CrossEntropyLoss", "NLLLoss"]

# TorchScript compiles only torch's own functions, hence the branches: it drops the one it does not take.


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """:class:`torch.nn.CrossEntropyLoss` computed by :func:`fused_losses.functional.cross_entropy`.

    Example::

        >>> loss = CrossEntropyLoss(weight=torch.tensor([1.3, 2.0]))
        >>> round(loss(torch.tensor([[1.3, 2.0], [1.3, 2.0]]), torch.tensor([1, 1])).item(), 4)
        0.4032

    Args:
        inplace_gradient: beyond torch's, by keyword: see :func:`fused_losses.functional.cross_entropy`.
    """

    inplace_gradient = False  # of modules that convert() made

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
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.inplace_gradient = inplace_gradient

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
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
