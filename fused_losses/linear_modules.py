"""The loss module that owns a linear layer: torch's where torch has it, and the same class under an older torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _WeightedLoss

from . import functional
from .modules import options_repr
from .operators.row_terms import row_terms

__all__ = ["LinearCrossEntropyLoss", "layer_of"]


class _LinearCrossEntropyLoss(_WeightedLoss):
    """The constructor, state and ``repr`` of torch 2.13's class."""

    __constants__ = ["label_smoothing", "num_classes", "out_features", "reduction"]  # noqa: RUF012  as torch writes it

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: Any = None,
    ) -> None:
        if weight is not None and weight.shape != (num_classes,):
            raise RuntimeError(f"expected weight shape to be {(num_classes,)}, got {tuple(weight.shape)}")
        if label_smoothing < 0 or label_smoothing > 1.0:
            raise RuntimeError(f"expected label_smoothing to be in range [0, 1], got {label_smoothing}")
        super().__init__(weight=weight, size_average=None, reduce=None, reduction=reduction)
        self.num_classes = num_classes
        self.out_features = out_features
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        num_logits = math.prod(out_features, start=num_classes)
        self.linear = nn.Linear(in_features, num_logits, bias=bias, device=device, dtype=dtype)
        self.options = options

    def extra_repr(self) -> str:
        return (
            f"in_features={self.linear.in_features}, num_classes={self.num_classes}, out_features={self.out_features},"
            f" bias={self.linear.bias is not None}, reduction={self.reduction}, ignore_index={self.ignore_index},"
            f" label_smoothing={self.label_smoothing}, options={self.options}"
        )


if TYPE_CHECKING:
    _Base = _LinearCrossEntropyLoss
else:
    _Base = getattr(nn, "LinearCrossEntropyLoss", _LinearCrossEntropyLoss)


def layer_of(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of such a module, as the function takes them."""
    weight, bias = module.linear.weight, module.linear.bias
    sizes = (module.num_classes, *module.out_features)
    return weight.reshape((*sizes, module.linear.in_features)), None if bias is None else bias.reshape(sizes)


class LinearCrossEntropyLoss(_Base):
    """:class:`torch.nn.LinearCrossEntropyLoss` computed by :func:`fused_losses.functional.linear_cross_entropy`.

    The layer is ``self.linear``. Its parameters may be another layer's: ``loss.linear.weight = embedding.weight``.

    Example::

        >>> loss = LinearCrossEntropyLoss(3, 5, bias=True)
        >>> output = loss(torch.randn(2, 3), torch.tensor([1, 4]))
        >>> output.backward()
        >>> loss.linear.weight.grad.shape
        torch.Size([5, 3])

    Args:
        logit_scale: beyond torch's, by keyword, as the others: see
            :func:`fused_losses.functional.linear_cross_entropy`.
        softcap: ditto.
        lse_square_scale: ditto.
    """

    # Of modules that convert() made:
    logit_scale = 1.0
    softcap: float | None = None
    lse_square_scale = 0.0

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: Any = None,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        lse_square_scale: float = 0.0,
    ) -> None:
        super().__init__(
            in_features,
            num_classes,
            out_features=out_features,
            bias=bias,
            device=device,
            dtype=dtype,
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
        )
        row_terms(logit_scale, softcap, lse_square_scale, 0.0)  # raises what the call would
        self.logit_scale = logit_scale
        self.softcap = softcap
        self.lse_square_scale = lse_square_scale

    def extra_repr(self) -> str:
        ours = options_repr(self, "logit_scale", "softcap", "lse_square_scale")
        return f"{super().extra_repr()}, {ours}" if ours else super().extra_repr()

    def forward(self, input: Tensor, target: Tensor, token_weight: Tensor | None = None) -> Tensor:
        linear_weight, linear_bias = layer_of(self)
        return functional.linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            logit_scale=self.logit_scale,
            softcap=self.softcap,
            lse_square_scale=self.lse_square_scale,
            token_weight=token_weight,
        )
