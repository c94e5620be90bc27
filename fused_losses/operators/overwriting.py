"""The operators that write over a tensor that they are given, and the one that only the tests call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .registration import Operator


def _fake(*arguments: Any) -> None:
    """No new tensor."""


def _fake_over_logits(*arguments: Any) -> bool:
    """It was written."""
    return True


def _fake_elementary_function(input: Tensor, function: int) -> Tensor:
    return input.new_empty(input.shape)


OPERATORS = {
    "cross_entropy_backward_over_logits": Operator(fake=_fake_over_logits),
    "binary_cross_entropy_with_logits_backward_over_logits": Operator(fake=_fake_over_logits),
    "cross_entropy_rescale_gradient": Operator(fake=_fake),
    "binary_cross_entropy_rescale_gradient": Operator(fake=_fake),
    "binary_cross_entropy_with_logits_rescale_gradient": Operator(fake=_fake),
    "elementary_function": Operator(fake=_fake_elementary_function),
}
