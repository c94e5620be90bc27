"""Parts of the rules by which :func:`torch.vmap` makes one call of a stack of calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .registration import call


def batch_first(tensor: Tensor, info: Any, in_dim: int | None) -> Tensor:
    """The stack with its batch axis first; of one tensor for all samples, a stack of views of it."""
    return tensor.movedim(in_dim, 0) if in_dim is not None else tensor.expand(info.batch_size, *tensor.shape)


def reduce_stack(losses: Tensor, denominators: Tensor | int | None, dtype: torch.dtype) -> Tensor:
    """The sum of each ``losses[b]`` over its denominator, added up in float64 and rounded once."""
    totals = losses.flatten(1).sum(1, dtype=torch.float64) if losses.dim() > 1 else losses.double()
    return (totals if denominators is None else totals / denominators).to(dtype)


def spread_stack(grad_outputs: Tensor, denominators: Tensor | int | None, losses_shape: Sequence[int]) -> Tensor:
    """The gradients of the reduced losses as gradients of the unreduced ones, in the kernels' order of roundings."""
    if denominators is not None:
        scale = 1.0 / torch.as_tensor(denominators, dtype=torch.float64, device=grad_outputs.device)
        grad_outputs = grad_outputs * scale.to(grad_outputs.dtype)
    return grad_outputs.view(-1, *[1] * (len(losses_shape) - 1)).expand(*losses_shape)


def call_one_by_one(name: str, info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    """The operator for one sample after the other, for batches that one call cannot hold: of class weights."""

    def sample(argument: Any, in_dim: int | None, b: int) -> Any:
        return argument if in_dim is None else argument.select(in_dim, b)

    results = [
        call(name, *(sample(argument, in_dim, b) for argument, in_dim in zip(arguments, in_dims, strict=True)))
        for b in range(info.batch_size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])
