"""What the class losses share: shapes, the weights of targets, and how a stack of calls becomes one call.

A sample is ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``; its positions are all axes but the class axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOAT_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
INDEX_DTYPES = frozenset({torch.int64, torch.int32, torch.uint8})
NO_INDEX = -(2**63)  # an ignore_index that ignores nothing


def refusal_of_ignore_index(ignore_index: object) -> str | None:
    """Why the kernels do not take it, or ``None``."""
    fits = type(ignore_index) is int and -(2**63) <= ignore_index < 2**63
    return None if fits else "ignore_index is no 64-bit integer"


def refusal_of_class_indices(input: Tensor, target: Tensor) -> str | None:
    """Why the kernels do not take these targets, or ``None``."""
    if target.dtype not in INDEX_DTYPES:
        return "the targets are neither class indices nor probabilities of the input's shape"
    sizes = input.shape
    if len(sizes) == 2:  # without building a size
        fits = target.dim() == 1 and target.shape[0] == sizes[0]
    else:
        fits = target.shape == position_sizes(sizes)
    return None if fits else "the target's shape does not fit the input's"


def refusal_of_class_weight(input: Tensor, weight: Tensor | None, promote: bool) -> str | None:
    if weight is None:
        return None
    if weight.dim() != 1 or weight.shape[0] != input.shape[class_dim(input.shape)]:
        return "there is not one weight per class"
    return None if is_type_of_class_weight(input, weight, promote) else "the weight's type is not the input's"


def is_type_of_class_weight(input: Tensor, weight: Tensor, promote: bool) -> bool:
    return weight.dtype == input.dtype or (promote and weight.dtype in FLOAT_DTYPES - {torch.float64})


def class_dim(sizes: Sequence[int]) -> int:
    return 0 if len(sizes) == 1 else 1


def position_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(sizes[:1]) + tuple(sizes[2:]) if len(sizes) > 1 else ()


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def fake_class_loss(input: Tensor, reduction: int, dtype: torch.dtype) -> Tensor:
    return input.new_empty(position_sizes(input.shape) if reduction == 0 else (), dtype=dtype)


def is_counted(target: Tensor, ignore_index: int) -> Tensor:
    """Which class indices are not ignored. A comparison in 8 or 32 bits would wrap ``ignore_index`` around."""
    return target.long() != ignore_index


def is_class(target: Tensor, num_classes: int) -> Tensor:
    """Which class indices there are classes for; compared in 64 bits, too."""
    target = target.long()
    return (target >= 0) & (target < num_classes)


def target_weights(target: Tensor, weight: Tensor | None, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """The class weight of each class index, 0 where it is ignored."""
    used = is_counted(target, ignore_index)
    if weight is None:
        return used.to(dtype)
    # index_select: in a gradient under vmap torch asks an index without axes for its value.
    index = torch.where(used, target, 0).long()
    return torch.where(used, weight.to(dtype).index_select(0, index.reshape(-1)).view(index.shape), 0)


def divisor(sum_of_weights: Tensor, label_smoothing: float) -> Tensor:
    """What a mean divides by. Torch adds the quotients of both parts of a smoothed loss: where there is no weight, one
    of them is 0 / 0, and so the sum is no number, and not infinite."""
    return torch.where(sum_of_weights == 0, torch.nan, sum_of_weights) if label_smoothing else sum_of_weights


def mean_denominator(
    target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, input: Tensor
) -> Tensor | float:
    """What the mean of the losses divides by: the weights of class indices, or the number of positions.

    That is an integer: the quotient of a scalar and a float has a float64 tangent in torch's transforms.
    """
    if target.is_floating_point():
        num_classes = input.shape[class_dim(input.shape)]
        return input.numel() // num_classes if num_classes else math.nan  # of no classes, as torch has it
    weights = target_weights(target, weight, ignore_index, torch.float64).sum().to(accumulation_dtype(input.dtype))
    return divisor(weights, label_smoothing)


def stack_weights(target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float = 0.0) -> Tensor:
    """What the mean of each sample of a stack, the batch axis first, divides by: the weights of its class indices."""
    weights = target_weights(target, weight, ignore_index, torch.float64)
    return divisor(weights.flatten(1).sum(1) if weights.dim() > 1 else weights, label_smoothing)


def mean_scale(
    target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float, input: Tensor
) -> Tensor | float:
    """What the loss of each position counts in the mean, besides its weight: of an ignored one nothing is left."""
    denominator = mean_denominator(target, weight, ignore_index, label_smoothing, input)
    if not isinstance(denominator, Tensor):
        return 1 / denominator
    return torch.where(is_counted(target, ignore_index), 1 / denominator, 0)


def fold(stack: Tensor, sample_dims: int) -> Tensor:
    """A stack, the batch axis first, as one sample: the batch joins the first axis of positions, or is it."""
    return stack if sample_dims <= 1 else stack.flatten(0, 1)


def unfold(folded: Tensor, stack: Tensor) -> Tensor:
    """The reverse, for what has the shape of the ``stack``'s fold."""
    return folded if folded.dim() == stack.dim() else folded.view(stack.shape[:2] + folded.shape[1:])


def fold_positions(stack: Tensor) -> Tensor:
    """:func:`fold` for what has no class axis."""
    return stack if stack.dim() <= 1 else stack.flatten(0, 1)


def fold_target(stack: Tensor) -> Tensor:
    """Probabilities fold as the input does, indices have the axes of the positions."""
    return fold(stack, stack.dim() - 1) if stack.is_floating_point() else fold_positions(stack)
