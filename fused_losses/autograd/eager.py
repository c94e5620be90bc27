"""When a call may run on the fused kernels. Everything else goes to torch's own function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils._device import DeviceContext

from .._cuda import is_cuda_available

_PLAIN_TYPES = frozenset({Tensor, Parameter})
_HAS_CUDA = is_cuda_available()

_are_transforms_active = torch._C._are_functorch_transforms_active
_num_dispatch_modes = torch._C._len_torch_dispatch_stack
_num_function_modes = torch._C._len_torch_function_stack
_tracing_state = torch._C._get_tracing_state
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks


def runs_eagerly() -> bool:
    """Whether nothing watches or rewrites the operators: no transform, mode, tracer or forward-mode level."""
    return (
        not torch.compiler.is_compiling()
        and not _are_transforms_active()
        and not _num_dispatch_modes()
        and forward_ad._current_level < 0
        and _tracing_state() is None
        and (not _num_function_modes() or _only_device_contexts())
    )


def eager_apply(function: type[torch.autograd.Function]) -> Callable[..., Tensor]:
    """``function.apply`` without what it does for :mod:`torch.func`, which :func:`runs_eagerly` has ruled out."""
    apply: Callable[..., Tensor] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


def is_batched(tensor: Tensor) -> bool:
    """Whether ``is_grads_batched=True`` made the tensor: a transform of the old kind, which no mode shows."""
    return bool(_is_legacy_batched(tensor))


def _only_device_contexts() -> bool:
    """``torch.set_default_device`` is a function mode too, and no reason to leave the kernels."""
    modes = (torch._C._get_function_stack_at(i) for i in range(_num_function_modes()))
    return all(isinstance(mode, DeviceContext) for mode in modes)


def has_kernel(input: Tensor, target: Tensor, *constants: Tensor | None) -> bool:
    """Whether the kernels may compute a loss of these tensors.

    Args:
        input: logits or probabilities; the only tensor the kernels differentiate with respect to.
        target: class indices or probabilities.
        constants: class weights and the like.
    """
    if not _is_served(input) or input.numel() == 0 or target is None:
        return False
    grad_enabled = torch.is_grad_enabled()
    for tensor in (target, *constants):
        if tensor is None:
            continue
        if not _is_served(tensor) or (grad_enabled and tensor.requires_grad):
            return False
    return True


def _is_served(tensor: Tensor) -> bool:
    """Whether a kernel may read the tensor: no subclass, on a device that there are kernels for."""
    return type(tensor) in _PLAIN_TYPES and (tensor.is_cpu or (_HAS_CUDA and tensor.is_cuda))


def is_autocast(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device."""
    return torch.is_autocast_enabled("cpu" if tensor.is_cpu else "cuda")


def is_refused_by_autocast(input: Tensor) -> bool:
    """Whether torch refuses losses of probabilities here: CUDA's autocast does, the CPU's does not."""
    return not input.is_cpu and is_autocast(input)


def keeps_target_type(target: Tensor) -> bool:
    """Whether an elementwise loss has its target's type, as the kernels give it.

    Autocast makes the loss float32; so the kernels serve it only where the target is that already.
    """
    return target.dtype.itemsize != 2 or not is_autocast(target)


def needs_gradient(input: Tensor) -> bool:
    return input.requires_grad and torch.is_grad_enabled()


def promotes(input: Tensor) -> bool:
    """Whether autocast is on and computes a loss of this 16-bit input in float32."""
    return is_autocast(input) and input.dtype in (torch.bfloat16, torch.float16)


def saves_through_hooks() -> bool:
    """Whether saved tensors are packed by hooks (checkpointing, offloading): then as little as possible is saved."""
    return _saved_tensors_hooks(True) is not None
