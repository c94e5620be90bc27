"""The linear layer of a loss: what fits, what the kernels take, and its tensors as rows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .operators.class_axis import FLOAT_DTYPES, accumulation_dtype
from .operators.cross_entropy import refusal as refusal_of_cross_entropy
from .routing import HALF_DTYPES, is_autocast, promotes

__all__ = ["LinearLayer", "autocast_layer", "checked_layer"]


class LinearLayer(NamedTuple):
    """A linear layer whose shapes fit, as (N, F) and (C * D, F) where it is computed.

    No properties: Dynamo of torch 2.10 does not follow those of a tuple.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor | None

    def num_classes(self) -> int:
        return self.weight.shape[0]

    def inner(self) -> tuple[int, ...]:
        """(d1, ..., dK)."""
        return tuple(self.weight.shape[1:-1])

    def positions(self) -> tuple[int, ...]:
        """The shape of the losses."""
        return (*self.input.shape[:-1], *self.inner())

    def holds_probabilities(self, target: Tensor) -> bool:
        if target.dim() != self.input.dim() + self.weight.dim() - 2:
            return False
        return target.shape == (*self.input.shape[:-1], self.num_classes(), *self.inner())

    def fits(self, target: Tensor) -> bool:
        return self.holds_probabilities(target) or target.shape == self.positions()

    def error_of_target(self, target: Tensor) -> ValueError:
        """Of class indices that do not fit."""
        return ValueError(
            f"Expected target of shape {list(self.positions())} for an input of shape {list(self.input.shape)}, "
            f"got {list(target.shape)}"
        )

    def num_rows(self) -> int:
        return math.prod(self.input.shape[:-1])

    def rows_of_positions(self, tensor: Tensor) -> Tensor:
        """(N) or (N, D)."""
        return tensor.reshape(self.num_rows(), math.prod(self.inner())) if self.inner() else tensor.reshape(-1)

    def rows_of_target(self, target: Tensor) -> Tensor:
        """The positions, or (N, C) or (N, C, D)."""
        if not self.holds_probabilities(target):
            return self.rows_of_positions(target)
        sizes = (self.num_rows(), self.num_classes())
        return target.reshape(*sizes, math.prod(self.inner())) if self.inner() else target.reshape(sizes)

    def autocast(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, weight and bias as rows, of the types that autocast gives a linear layer."""
        num_logits = math.prod(self.weight.shape[:-1])
        input = self.input.reshape(self.num_rows(), self.input.shape[-1])
        weight = self.weight if self.weight.dim() == 2 else self.weight.reshape(num_logits, self.weight.shape[-1])
        bias = self.bias if self.bias is None or self.bias.dim() == 1 else self.bias.reshape(num_logits)
        return autocast_layer(input, weight, bias)

    def logits_dtype(self) -> torch.dtype:
        input = self.input
        return torch.get_autocast_dtype(input.device.type) if _is_cast(input) else input.dtype

    def stand_in(self) -> Tensor:
        """No logits, but of their shape and type."""
        sizes = (self.num_rows(), self.num_classes(), *([math.prod(self.inner())] if self.inner() else []))
        return self.input.new_empty((1,), dtype=self.logits_dtype()).expand(sizes)

    def refusal_of_types(self) -> str | None:
        """Why no layer of these types is computed here, or ``None``; under autocast those that it casts are one."""
        dtypes = {tensor.dtype for tensor in (self.input, self.weight, self.bias) if tensor is not None}
        if not is_autocast(self.input) and len(dtypes) > 1:
            return "input, weight and bias are of several types"
        if (torch.float64 in dtypes and len(dtypes) > 1) or not dtypes <= FLOAT_DTYPES:
            return "there is no kernel for these types"
        return None

    def refusal(
        self, target: Tensor, class_weight: Tensor | None, ignore_index: int, label_smoothing: float
    ) -> str | None:
        """Why this is no problem for us, or ``None``: torch knows the error, if it is one."""
        if (reason := self.refusal_of_types()) is not None:
            return reason
        if not self.fits(target):
            return "the target's shape does not fit"
        logits = self.stand_in()
        return refusal_of_cross_entropy(
            logits, self.rows_of_target(target), class_weight, ignore_index, label_smoothing, promotes(logits)
        )

    def loss_dtype(self, target: Tensor) -> torch.dtype:
        dtype = self.logits_dtype()
        is_promoted = dtype in HALF_DTYPES and is_autocast(self.input)
        by_probability = target.is_floating_point() and target.dtype != dtype
        return accumulation_dtype(dtype) if is_promoted or by_probability else dtype


def _is_cast(tensor: Tensor) -> bool:
    return is_autocast(tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64


def autocast_layer(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """As autocast casts the arguments of a linear layer, where it is on: no float64."""
    if not is_autocast(input):
        return input, weight, bias
    return _autocast_cast(input), _autocast_cast(weight), None if bias is None else _autocast_cast(bias)


def _autocast_cast(tensor: Tensor) -> Tensor:
    return tensor.to(torch.get_autocast_dtype(tensor.device.type)) if _is_cast(tensor) else tensor


def checked_layer(input: Tensor, weight: Tensor, bias: Tensor | None) -> LinearLayer:
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
    for tensor in (weight, bias):
        if tensor is not None and tensor.device != input.device:  # of one without memory torch makes what is not there
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{input.device} and {tensor.device}!"
            )
    return LinearLayer(input, weight, bias)
