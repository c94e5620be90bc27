"""What a rank computes of its own rows: the four losses, asked and called in one way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..autograd.binary_cross_entropy import fused_binary_cross_entropy
from ..autograd.binary_cross_entropy_with_logits import fused_binary_cross_entropy_with_logits
from ..autograd.cross_entropy import fused_cross_entropy
from ..autograd.nll_loss import fused_nll_loss
from ..operators import binary_cross_entropy as of_probabilities
from ..operators import binary_cross_entropy_with_logits as of_logits
from ..operators import cross_entropy, elementwise, nll_loss
from ..operators.class_axis import accumulation_dtype, class_dim, mean_denominator
from ..operators.registration import NONE
from ..routing import HALF_DTYPES, kernel_route, promotes

__all__ = ["LOSSES", "LocalLoss"]

_Weights = tuple[Tensor | None, ...]
_Options = tuple[Any, ...]  # those of the loss, without the reduction


class LocalLoss(ABC):
    """A loss whose rows can be anywhere."""

    @abstractmethod
    def refusal(self, input: Tensor, target: Tensor, weights: _Weights, options: _Options) -> str | None:
        """Why the kernels do not compute it, or ``None``. Asked of the whole, since each rank must hear the same."""

    @abstractmethod
    def result_dtype(self, input: Tensor, target: Tensor) -> torch.dtype: ...

    @abstractmethod
    def class_dim(self, input: Tensor) -> int | None:
        """The axis that each row needs as a whole."""

    @abstractmethod
    def num_terms(self, input: Tensor, target: Tensor) -> float | None:
        """What the mean divides by, of the whole, or ``None`` where that depends on the targets."""

    @abstractmethod
    def denominator(self, input: Tensor, target: Tensor, weights: _Weights, options: _Options) -> Tensor:
        """This rank's part of it there."""

    @abstractmethod
    def compute(self, input: Tensor, target: Tensor, weights: _Weights, reduction: int, options: _Options) -> Tensor:
        """The losses in the result's type, or their sum in the type of computation: ranks add up such sums.

        Torch computes what there is of no rows, which no kernel takes.
        """


@dataclass(frozen=True)
class _ClassLoss(LocalLoss):
    fused: Callable[..., Tensor]
    composite: Callable[..., Tensor]
    refuses: Callable[..., str | None]
    dtype: Callable[[Tensor, Tensor, bool], torch.dtype]

    def refusal(self, input: Tensor, target: Tensor, weights: _Weights, options: _Options) -> str | None:
        return self.refuses(input, target, *weights, *options, promotes(input))

    def result_dtype(self, input: Tensor, target: Tensor) -> torch.dtype:
        return self.dtype(input, target, promotes(input))

    def class_dim(self, input: Tensor) -> int | None:
        return class_dim(input.shape)

    def num_terms(self, input: Tensor, target: Tensor) -> float | None:
        return input.numel() / input.shape[class_dim(input.shape)] if target.is_floating_point() else None

    def denominator(self, input: Tensor, target: Tensor, weights: _Weights, options: _Options) -> Tensor:
        (weight,), (ignore_index, *_) = weights, options
        denominator = mean_denominator(target, weight, ignore_index, 0.0, input)  # of this rank: it may be 0
        assert isinstance(denominator, Tensor)  # of class indices
        return denominator

    def compute(self, input: Tensor, target: Tensor, weights: _Weights, reduction: int, options: _Options) -> Tensor:
        promote = promotes(input) if reduction == NONE else input.dtype in HALF_DTYPES
        all_options = (reduction, *options, promote)
        if input.numel() == 0:
            return self.composite(all_options, input, target, *weights)
        return self.fused(kernel_route(), input, target, *weights, *all_options)


@dataclass(frozen=True)
class _ElementwiseLoss(LocalLoss):
    fused: Callable[..., Tensor]
    composite: Callable[..., Tensor]
    refuses: Callable[..., str | None]

    def refusal(self, input: Tensor, target: Tensor, weights: _Weights, options: _Options) -> str | None:
        return self.refuses(input, self.result_dtype(input, target), target, *weights)

    def result_dtype(self, input: Tensor, target: Tensor) -> torch.dtype:
        return elementwise.autocast_dtype(target)

    def class_dim(self, input: Tensor) -> int | None:
        return None

    def num_terms(self, input: Tensor, target: Tensor) -> float | None:
        return input.numel()

    def denominator(self, input: Tensor, target: Tensor, weights: _Weights, options: _Options) -> Tensor:
        raise AssertionError("every element counts alike")

    def compute(self, input: Tensor, target: Tensor, weights: _Weights, reduction: int, options: _Options) -> Tensor:
        dtype = self.result_dtype(input, target)
        target = target.to(dtype if reduction == NONE else accumulation_dtype(dtype))  # the loss has its type
        if input.numel() == 0:
            return self.composite(reduction, input, target, *weights)
        return self.fused(kernel_route(), input, target, *weights, reduction)


LOSSES: dict[str, LocalLoss] = {
    "cross_entropy": _ClassLoss(
        partial(fused_cross_entropy, inplace_gradient=False),
        cross_entropy.composite,
        cross_entropy.refusal,
        cross_entropy.loss_dtype,
    ),
    "nll_loss": _ClassLoss(
        fused_nll_loss,
        nll_loss.composite,
        nll_loss.refusal,
        lambda input, target, promote: nll_loss.loss_dtype(input, promote),
    ),
    "binary_cross_entropy": _ElementwiseLoss(
        fused_binary_cross_entropy, of_probabilities.composite, of_probabilities.refusal
    ),
    "binary_cross_entropy_with_logits": _ElementwiseLoss(
        partial(fused_binary_cross_entropy_with_logits, inplace_gradient=False),
        of_logits.composite,
        elementwise.refusal,
    ),
}
