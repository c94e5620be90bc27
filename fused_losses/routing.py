"""Which way a call goes: to a kernel, and how, or to torch's own function, and why.

Every loss asks the same two questions, and then goes; no exception chooses a way. First :func:`reason_for_torch`: what
surrounds the call and what its tensors are. Then the loss's own question, in ``operators/``: shapes, types and options.
What is left takes the kernels in one of two ways:

* plain eager mode takes the ``torch.autograd.Function`` with its shortcuts (``fused_losses/autograd``);
* what watches or rewrites operators takes the differentiable operator itself (:func:`is_watched`): torch.compile and
  torch.export, transforms of :mod:`torch.func`, dispatch modes.

``docs/routing.md`` is the table, :func:`fused_losses.explain` says it of one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack, get_unwrapped, is_functorch_wrapped_tensor
from torch._guards import TracingContext
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.overrides import has_torch_function_variadic

from ._cuda import is_cuda_available
from .route_log import COMPILED, EAGER, WATCHED
from .tracing import constant_while_tracing

__all__ = [
    "OVERRIDDEN",
    "SEEN_BY_TORCH",
    "are_transforms_active",
    "has_dispatch_modes",
    "has_overrides",
    "is_autocast",
    "is_compiling",
    "is_differentiated",
    "is_dtensor",
    "is_in_forward_mode",
    "is_served",
    "is_under_transform",
    "is_watched",
    "kernel_route",
    "may_be_differentiated",
    "may_be_differentiated_later",
    "promotes",
    "reason_for_torch",
    "reason_of_companion",
    "reason_of_size",
    "reason_of_surroundings",
    "records_graph",
    "requires_gradient",
    "without_waiting_wrapper",
]

OVERRIDDEN = "a subclass or a mode overrides torch's functions"
SEEN_BY_TORCH = "a transform or a mode sees torch's operators"
_NO_FORWARD_MODE = "the kernels have no forward-mode derivative"

HALF_DTYPES = frozenset({torch.bfloat16, torch.float16})
_PLAIN_TYPES = frozenset({Tensor, Parameter, FakeTensor})
_HAS_CUDA = is_cuda_available()

_TRACING_MODES = tuple(getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL"))
_is_anything_compiling = torch.compiler.is_compiling
are_transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
_num_dispatch_modes = torch._C._len_torch_dispatch_stack
_num_function_modes = torch._C._len_torch_function_stack
_tracing_state = torch._C._get_tracing_state


def is_compiling() -> bool:
    """Whether this thread traces: torch's flag says it of the process. Who traces is Dynamo, or is below it or below a
    mode that torch traces with."""
    return _is_anything_compiling() and (
        torch.compiler.is_dynamo_compiling()
        or TracingContext.try_get() is not None
        or any(torch._C._get_dispatch_mode(key) is not None for key in _TRACING_MODES)
    )


def has_overrides(*tensors: Tensor | None) -> bool:
    """Whether somebody's ``__torch_function__`` must be asked: a subclass, a duck type, a mode.

    Torch's own modes (a default device, those of torch.export) are no reason to leave the kernels.
    """
    if not has_torch_function_variadic(*tensors):
        return False
    if torch.compiler.is_dynamo_compiling() or not _num_function_modes():
        return True
    return not _only_torchs_modes() or _has_overriding_type(tensors)


def _only_torchs_modes() -> bool:
    modes = (torch._C._get_function_stack_at(i) for i in range(_num_function_modes()))
    return all(type(mode).__module__.split(".")[0] == "torch" for mode in modes)


def _has_overriding_type(tensors: tuple[Tensor | None, ...]) -> bool:
    plain = (torch._C._disabled_torch_function_impl, Tensor.__torch_function__)
    handlers = (getattr(type(tensor), "__torch_function__", None) for tensor in tensors if tensor is not None)
    return any(handler is not None and handler not in plain for handler in handlers)


def is_under_transform() -> bool:
    """Whether a transform of :mod:`torch.func` is at work, or forward mode."""
    return are_transforms_active() or forward_ad._current_level >= 0


@constant_while_tracing
def is_in_forward_mode() -> bool:
    """Whether dual numbers may be about: inside :func:`torch.func.jvp`, too."""
    return forward_ad._current_level >= 0


@constant_while_tracing
def _is_transform_traced() -> bool:
    """Dynamo follows a transform by entering it: what is true while it traces is true of the graph."""
    return is_under_transform()


@constant_while_tracing
def _reason_while_tracing() -> str | None:
    if _is_transform_traced():
        return "torch.compile loses derivatives of operators under a transform"
    return _reason_of_exporter()


def _reason_of_exporter() -> str | None:
    return "ONNX has no such operator" if torch.onnx.is_in_onnx_export() else None


def reason_of_surroundings() -> str | None:
    """Why torch's own function takes any call here and now, or ``None``."""
    if is_compiling():
        return _reason_while_tracing() if torch.compiler.is_dynamo_compiling() else _reason_of_exporter()
    if forward_ad._current_level >= 0:
        return _NO_FORWARD_MODE
    if _tracing_state() is not None:
        return "torch.jit.trace records torch's own operators"
    return _reason_of_levels() if are_transforms_active() else None


def _reason_of_levels() -> str | None:
    """Of a transform at work at any level: the levels hand a Function down to each other. Forward mode is one of them
    alone in a graph of Dynamo that is run as it is."""
    levels = {level.key() for level in get_interpreter_stack() or ()}
    if TransformType.Functionalize in levels:
        return "torch.func.functionalize has no rule for a torch.autograd.Function"
    return _NO_FORWARD_MODE if TransformType.Jvp in levels else None


def reason_for_torch(input: Tensor, target: Tensor, *constants: Tensor | None) -> str | None:
    """Why torch's own function takes the call, or ``None`` where a kernel may.

    Args:
        input: logits or probabilities; the only tensor the kernels differentiate with respect to.
        target: class indices or probabilities.
        constants: class weights and the like.
    """
    if (reason := reason_of_surroundings()) is not None:
        return reason
    if not is_served(input):
        return _what_is_not_served(input)
    if (reason := reason_of_size(input)) is not None:
        return reason
    if target is None:
        return "there is no target"
    has_graph = records_graph()
    for tensor in (target, *constants):
        if tensor is None:
            continue
        if (reason := reason_of_companion(tensor, input)) is not None:
            return reason
        if has_graph and requires_gradient(tensor):
            return "a target or weight requires a gradient"
    return None


def reason_of_size(input: Tensor) -> str | None:
    """Why no kernel computes so many elements, or ``None``. Of a size that depends on data, that of ``logits[mask]``, a
    graph does not know whether it is 0."""
    if not is_compiling():
        return "the input is empty" if input.numel() == 0 else None
    from torch.fx.experimental.symbolic_shapes import guard_or_false  # here, since it takes long to import

    return None if guard_or_false(input.numel() != 0) else "the input is empty, or may be when the graph runs"


def reason_of_companion(tensor: Tensor, input: Tensor) -> str | None:
    """Why no kernel reads the tensor beside ``input``, or ``None``."""
    if not is_served(tensor):
        return _what_is_not_served(tensor)
    on_cpu = input.is_cpu
    if tensor.is_cpu != on_cpu or not (on_cpu or tensor.device == input.device):
        return "the tensors are on several devices"
    return None


def is_served(tensor: Tensor) -> bool:
    """Whether a kernel may read the tensor: no subclass, strided, on a device that there are kernels for."""
    return (
        type(tensor) in _PLAIN_TYPES
        and (tensor.is_cpu or (_HAS_CUDA and tensor.is_cuda))
        and tensor.layout is torch.strided
        and not tensor.is_nested
    )


def _what_is_not_served(tensor: Tensor) -> str:
    if type(tensor) not in _PLAIN_TYPES:
        return f"a tensor is a {type(tensor).__name__}"
    if not (tensor.is_cpu or tensor.is_cuda) or (tensor.is_cuda and not _HAS_CUDA):
        return f"there are no kernels for {tensor.device.type} tensors"
    return "a tensor is not strided"


def is_dtensor(tensor: Tensor) -> bool:
    """Without the module of that type, which takes long to import."""
    return type(tensor).__name__ == "DTensor"


def kernel_route() -> str:
    """Which way a call goes that a kernel takes."""
    if is_compiling():
        return COMPILED
    return WATCHED if are_transforms_active() or _num_dispatch_modes() else EAGER


def has_dispatch_modes() -> bool:
    """Whether somebody in this thread is shown every operator."""
    return _num_dispatch_modes() > 0


def is_watched() -> bool:
    """Whether something watches or rewrites operators, and so must see the differentiable operator itself."""
    return _is_transformed() or has_dispatch_modes()


class _WaitedFor(torch.autograd.Function):
    """What an ``AsyncCollectiveTensor`` wraps; views of the wrapper wait no more than it does."""

    @staticmethod
    def forward(ctx: Any, wrapper: Any) -> Tensor:
        wrapped: Tensor = wrapper.trigger_wait()
        return wrapped.detach()  # the wrapped tensor itself is to get no history

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output


def without_waiting_wrapper(tensor: Tensor) -> Tensor:
    """The result of a collective that may still be under way, waited for; any other tensor as it is.

    It shares its memory with the wrapper, but no version counter: nobody may write to it.
    """
    if type(tensor) is not Tensor and type(tensor).__name__ == "AsyncCollectiveTensor" and not _is_transformed():
        waited_for: Tensor = _WaitedFor.apply(tensor)  # type: ignore[no-untyped-call]
        return waited_for
    return tensor


def _is_transformed() -> bool:
    """Whether something is at work that a ``Function`` without ``setup_context`` and ``jvp`` does not serve."""
    return is_compiling() or is_under_transform()


def is_autocast(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device."""
    return torch.is_autocast_enabled("cpu") if tensor.is_cpu else tensor.is_cuda and torch.is_autocast_enabled("cuda")


def promotes(input: Tensor) -> bool:
    """Whether autocast is on and computes a loss of this 16-bit input in float32."""
    return input.dtype in HALF_DTYPES and is_autocast(input)


def records_graph() -> bool:
    """Whether autograd records what is computed: never in inference mode, of which Dynamo knows nothing."""
    return torch.is_grad_enabled() and (torch.compiler.is_dynamo_compiling() or not torch.is_inference_mode_enabled())


def may_be_differentiated(input: Tensor, route: str) -> bool:
    """Whether the loss of this input needs a graph. A transform may differentiate at a level that no flag shows."""
    return (input.requires_grad and records_graph()) or (route == WATCHED and are_transforms_active())


def may_be_differentiated_later(route: str) -> bool:
    """Whether a gradient may be wanted although the input's flag says no: an exported graph, or one of ``make_fx``, is
    run later with other inputs; and while Dynamo traces, the flag is out of date where an alias of the tensor was
    written to, and false of what a scan carries along."""
    return route == WATCHED or (route == COMPILED and (torch.is_grad_enabled() or _is_exporting()))


@constant_while_tracing
def _is_exporting() -> bool:
    """Asked of torch itself: Dynamo of torch 2.10 says so of everything that it traces."""
    return torch.compiler.is_exporting()


def requires_gradient(tensor: Tensor) -> bool:
    """Whether a backward wants its gradient: of this level, or of one below, which no flag of a wrapper shows."""
    if tensor.requires_grad:
        return True
    if torch.compiler.is_dynamo_compiling() or not are_transforms_active():
        return False
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
        if tensor.requires_grad:
            return True
    return False


def is_differentiated(tensor: Tensor) -> bool:
    """Whether a derivative for the tensor may be wanted, of any kind and at any level."""
    is_traced = torch.compiler.is_dynamo_compiling()
    may_be_forward = _is_transform_traced() if is_traced else forward_ad._current_level >= 0
    return may_be_forward or (records_graph() and requires_gradient(tensor))
