"""What torch must know of the operators to trace, differentiate and batch them: one file per loss, and one for all
that write over a tensor.

Each file holds, for the operators of its loss, the fake kernels (shapes and types without values), the derivatives,
first and second, and the rules by which :func:`torch.vmap` makes one call of a stack of calls.
"""

from __future__ import annotations

from . import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    nll_loss,
    overwriting,
    sigmoid_focal_loss,
    token_statistics,
)
from .registration import register

__all__ = ["register_operators"]


def register_operators(namespace: str) -> None:
    """Tell torch about the operators of a namespace: ``fused_losses``, or the tests' emulation of a GPU."""
    losses = (cross_entropy, nll_loss, binary_cross_entropy, binary_cross_entropy_with_logits)
    for module in (*losses, sigmoid_focal_loss, token_statistics, overwriting):
        for name, description in module.OPERATORS.items():
            register(namespace, name, description)


register_operators("fused_losses")
