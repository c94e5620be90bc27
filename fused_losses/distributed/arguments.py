"""What is wrong with a call on this rank, found before anything is sent; and a call of a rank where something is.

An error is not raised where it is found: the other ranks would wait for ever. See Note [Two reductions] in
statistics.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ..operators.class_axis import FLOAT_DTYPES, INDEX_DTYPES, accumulation_dtype
from ..operators.registration import REDUCTIONS
from ..operators.row_terms import check_token_weight, row_terms
from ..routing import is_in_forward_mode

__all__ = [
    "check_linear",
    "check_logits",
    "check_options",
    "check_vocab_start",
    "class_weight_of_shard",
    "error_of",
    "group_of_name",
    "name_of_group",
    "refuse_call",
    "stand_in",
]


def name_of_group(group: dist.ProcessGroup | None) -> str:
    if group is not None:
        name: str = group.group_name
        return name
    if not dist.is_initialized():
        raise ValueError(
            "the default process group has not been initialized: call torch.distributed.init_process_group"
        )
    return name_of_group(dist.distributed_c10d._get_default_group())


def group_of_name(name: str) -> dist.ProcessGroup:
    """Inside an operator, which takes no groups."""
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type]


def error_of(*checks: Callable[[], None]) -> Exception | None:
    """What the first of the checks raises that raises anything."""
    try:
        for check in checks:
            check()
    except Exception as error:
        return error
    return None


def refuse_call(*tensors: Tensor | None) -> None:
    """Raises what is wrong on every rank alike, before anything is sent."""
    if is_in_forward_mode():
        raise NotImplementedError("losses of a vocabulary that is spread over ranks have no forward-mode derivative")
    devices = sorted({str(tensor.device) for tensor in tensors if isinstance(tensor, Tensor)})
    if len(devices) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {' and '.join(devices)}")


def check_vocab_start(vocab_start: int | None) -> None:
    if vocab_start is not None and vocab_start < 0:
        raise ValueError(f"vocab_start must not be negative, got {vocab_start}")


def check_logits(logits: Tensor, target: Tensor, weight: Tensor | None) -> None:
    if logits.dtype not in FLOAT_DTYPES:
        raise TypeError(f"logits must be float32, float64, bfloat16 or float16, not {logits.dtype}")
    if logits.dim() == 0:
        raise ValueError("the logits need a class axis")
    check_rows(logits.shape[:-1], target)
    check_class_weight(weight, logits.size(-1))


def check_linear(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None
) -> None:
    if input.dtype not in FLOAT_DTYPES:
        raise TypeError(f"input must be float32, float64, bfloat16 or float16, not {input.dtype}")
    if input.dim() == 0 or linear_weight.dim() != 2 or linear_weight.size(1) != input.size(-1):
        raise ValueError(
            f"Expected linear_weight_local of shape [V, F] for input of shape [..., F], "
            f"got {list(linear_weight.shape)} and {list(input.shape)}"
        )
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:1]:
        raise ValueError(f"Expected linear_bias of shape {[linear_weight.size(0)]}, got {list(linear_bias.shape)}")
    for name, tensor in (("linear_weight_local", linear_weight), ("linear_bias", linear_bias)):
        if tensor is not None and tensor.dtype != input.dtype:
            raise TypeError(f"{name} must be of the input's type {input.dtype}, not {tensor.dtype}")
    check_rows(input.shape[:-1], target)
    check_class_weight(weight, linear_weight.size(0))


def check_rows(sizes: torch.Size, target: Tensor) -> None:
    if target.dtype not in INDEX_DTYPES:
        raise ValueError(f"targets must be class indices of type int64, int32 or uint8, not {target.dtype}")
    if target.shape != sizes:
        raise ValueError(f"Expected target of shape {list(sizes)}, got {list(target.shape)}")


def check_class_weight(weight: Tensor | None, num_classes: int) -> None:
    if weight is None:
        return
    if weight.shape != (num_classes,):
        raise ValueError(f"weight must hold one number for each of the {num_classes} classes of this rank")
    if not weight.is_floating_point():
        raise TypeError(f"weight must be of a floating-point type, not {weight.dtype}")
    if weight.requires_grad:
        raise ValueError("weight cannot be differentiated")


def check_options(
    target: Tensor,
    token_weight: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "none",
) -> None:
    row_terms(logit_scale, softcap, lse_square_scale, focal_gamma=0.0)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0.0 and 1.0, not {label_smoothing}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    check_token_weight(token_weight, target.shape)


def stand_in(target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits of no classes and targets, as many as the other ranks have, for the part of a rank with an error."""
    dtype = accumulation_dtype(dtype)
    return torch.empty(target.numel(), 0, dtype=dtype, device=target.device), target.new_zeros(target.numel()).long()


def class_weight_of_shard(weight: Tensor | None, num_classes: int, dtype: torch.dtype) -> Tensor | None:
    """In the type of computation for logits of a type; none of no classes, which a stand-in has."""
    return None if weight is None else weight.detach().reshape(-1)[:num_classes].to(accumulation_dtype(dtype))
