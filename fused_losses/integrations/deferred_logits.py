"""The logits of a linear layer that are not made until somebody asks for more of them than their loss."""

from __future__ import annotations

import math
import operator
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import EllipsisType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from ..functional import cross_entropy, linear_cross_entropy
from ..operators.composite import pulled_back
from ..operators.versions import saves_through_hooks
from ..routing import HALF_DTYPES, are_transforms_active, is_compiling
from ..torch_losses import torch_function

__all__ = ["DeferredLogits", "DeferringLinear", "float32_cross_entropy"]

_torch_cross_entropy = torch_function("cross_entropy")
_SAME = {Tensor.contiguous}
_RESHAPING = {Tensor.view, Tensor.reshape, torch.reshape}
_SCALES: dict[Any, Callable[[float, float], float]] = {
    **dict.fromkeys((Tensor.mul, torch.mul), operator.mul),
    **dict.fromkeys((Tensor.div, torch.div, torch.true_divide), operator.truediv),
}
_TANH = {Tensor.tanh, torch.tanh}
_HOOKS = {Tensor.register_hook, Tensor.register_post_accumulate_grad_hook, Tensor.retain_grad}
# What a tensor without memory knows of itself.
_KNOWN = {
    *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.is_floating_point),
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad", "layout")),
    *(getattr(Tensor, name).__get__ for name in ("is_cuda", "is_cpu", "_base")),
    *(Tensor.__len__, Tensor.is_complex, torch.is_floating_point, torch.numel),
}


class _Layer(NamedTuple):
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    autocast_dtype: torch.dtype | None
    versions: tuple[int, ...]

    @classmethod
    def of(cls, input: Tensor, weight: Tensor, bias: Tensor | None) -> _Layer:
        """As it is called here and now."""
        device = input.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        if input.dtype == torch.float64:
            autocast = None
        return cls(input, weight, bias, autocast, _versions(input, weight, bias))

    def autocast(self, *, float32_loss: bool = False) -> AbstractContextManager[Any]:
        """As it was when the layer was called: its loss may be asked for elsewhere."""
        dtype = self.autocast_dtype
        if dtype is None and float32_loss and self.input.dtype in HALF_DTYPES:
            dtype = self.input.dtype
        return torch.autocast(self.input.device.type, dtype=dtype, enabled=dtype is not None)


_Operations = tuple[tuple[Callable[..., Tensor], tuple[Any, ...]], ...]


class _Uses:
    """What became of a layer's call, whatever was made of its logits."""

    def __init__(self) -> None:
        self.hooks: OrderedDict[int, Callable[[Tensor], Any]] = OrderedDict()
        """Of FSDP: they gather the weight, so they run before the layer's backward, whether there are logits or not."""
        self.has_loss = False
        """That was computed without the logits, which have no gradient of it."""


class _Deferral:
    """What a tensor of deferred logits and its node in the graph know: how to make them, and what was made."""

    def __init__(self, layer: _Layer, operations: _Operations, uses: _Uses, view: _View | None = None) -> None:
        self.layer, self.operations, self.uses, self.view = layer, operations, uses, view
        self.logits: Tensor | None = None

    @property
    def are_made(self) -> bool:
        """Whether there are logits, which may be modified: these, or those that they are a view of."""
        return self.logits is not None or (self.view is not None and self.view.of.are_made)

    def made(self) -> Tensor:
        """The logits."""
        if self.logits is None and self.view is not None:
            of, function, arguments = self.view
            with torch.inference_mode(False), torch.enable_grad():
                self.logits = function(of.made(), *arguments)
        if self.logits is None:
            self.check_layer()
            # Whoever asks first: another may differentiate them. And what the layer saves is nothing that a checkpoint
            # around who asks has to compute again.
            with torch.inference_mode(False), torch.enable_grad(), _saving_as_it_is():
                self.logits = self.hooked(self._computed(*self.layer[:3]))
        return self.logits

    def _computed(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        with self.layer.autocast():
            logits = F.linear(input, weight, bias)
        for function, arguments in self.operations:
            logits = function(logits, *arguments)
        return logits

    def gradients(self, grad_output: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
        """Of the layer's tensors. From logits of its own: the graph of those that were made may be freed already."""
        self.check_logits()
        for hook in self.uses.hooks.values():
            hook(grad_output)
        self.check_layer()
        return pulled_back(self._computed, self.layer[:3], needed, grad_output)

    def check_logits(self) -> None:
        """That nothing happened to those that were made, of which others know nothing."""
        if self.view is not None:
            self.view.of.check_logits()
        if self.logits is None or is_compiling():
            return
        if self.logits._version or _has_hooks(self.logits):
            raise RuntimeError(
                "the logits of a deferring head were modified in place, or have a hook, and then went into a "
                "torch.autograd.Function or a reentrant checkpoint: give it logits.clone()"
            )

    def check_layer(self) -> None:
        """That it is what it was when it was called."""
        if _versions(*self.layer[:3]) != self.layer.versions:
            raise RuntimeError(
                "the weight of the head or its input was changed in place since: read the logits and compute their "
                "loss before the optimizer's step, or use `integrations.transformers.unfused_linear_head`"
            )
        if not are_transforms_active() and not self.layer.weight.untyped_storage().size():
            raise RuntimeError(
                "the weight of the head has no memory now: FSDP freed it after the forward in which the head was "
                "called. Compute the loss and read the logits before, in the model's forward, or call "
                "set_reshard_after_forward(False, recurse=False) of the module that is sharded with the head"
            )

    def check_gradient(self) -> None:
        """That all of the logits' gradient is one that they have."""
        if self.uses.has_loss:
            raise RuntimeError(
                "the loss was computed without these logits, which have no gradient of it: ask for their gradient "
                "before the loss, or use `integrations.transformers.unfused_linear_head`"
            )

    def hooked(self, result: Tensor) -> Tensor:
        """The logits or their loss."""
        for hook in self.uses.hooks.values() if result.requires_grad else ():
            result.register_hook(hook)  # type: ignore[no-untyped-call]
        return result

    def scale_and_softcap(self) -> tuple[float, float | None] | None:
        """``logit_scale`` and ``softcap`` of the operations so far, or ``None``: these are others, or made already."""
        before = after = 1.0
        capped = False
        for function, arguments in self.operations:
            if function in _TANH:
                if capped:
                    return None
                capped = True
            elif function in _SCALES:
                factor = _SCALES[function](1.0, float(arguments[0]))
                before, after = (before, after * factor) if capped else (before * factor, after)
        if self.are_made or (capped and not 0 < after < math.inf):
            return None
        scale = before * after if capped else before
        return (scale, after if capped else None) if math.isfinite(scale) and scale != 0 else None


class _View(NamedTuple):
    """``function(of, *arguments)``, some of whose rows, or all in another shape, deferred logits are."""

    of: _Deferral
    function: Callable[..., Tensor]
    arguments: tuple[Any, ...]


class _Node(torch.autograd.Function):
    """The way of a gradient to the layer from what takes deferred logits without ``__torch_function__``.

    So do a ``Function``, a reentrant checkpoint among them, and DistributedDataParallel where it looks for parameters
    that are not used.
    """

    @staticmethod
    def forward(ctx: Any, deferral: _Deferral, dtype: torch.dtype, *layer: Tensor | None) -> Tensor:
        ctx.deferral = deferral
        ctx.set_materialize_grads(False)
        return _without_memory(deferral.layer, dtype, requires_grad=False)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[2:]
        gradients = [None for _ in needed] if grad_output is None else ctx.deferral.gradients(grad_output, needed)
        return (None, None, *gradients)


class DeferredLogits(Tensor):
    """``linear(input, weight, bias)``, perhaps scaled and capped, as a tensor without memory.

    Division and multiplication by a number, ``tanh``, ``float`` and ``contiguous`` give deferred logits again, as do
    slices and other shapes of the rows. :func:`float32_cross_entropy` and torch's own function give their loss by
    :func:`fused_losses.functional.linear_cross_entropy`. Anything else makes the logits, once, and goes on with
    them: it costs what it would have cost, and gives the same.
    """

    _deferral: _Deferral

    @classmethod
    def of(cls, deferral: _Deferral, dtype: torch.dtype) -> DeferredLogits:
        layer = deferral.layer
        if are_transforms_active():  # which would take the type from what a Function returns
            requires_grad = any(t is not None and t.requires_grad for t in layer[:3])
            deferred = _without_memory(layer, dtype, requires_grad=requires_grad)
        else:
            deferred = _Node.apply(deferral, dtype, *layer[:3])  # type: ignore[no-untyped-call]
        deferred._deferral = deferral
        return deferred

    @property
    def are_made(self) -> bool:
        return self._deferral.are_made

    def made(self) -> Tensor:
        """The logits."""
        return self._deferral.made()

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in _KNOWN:
                return func(*args, **(kwargs or {}))
            self = args[0] if args else None
            if isinstance(self, DeferredLogits) and not self.are_made and not kwargs:
                deferral, uses = self._deferral, self._deferral.uses
                if func in _SAME and len(args) == 1:
                    return self
                if _is_float(func, args) and self.dtype == torch.float32:
                    return self
                if _is_deferrable(func, args):
                    dtype = torch.float32 if _is_float(func, args) else self.dtype
                    operations = (*deferral.operations, (func, args[1:]))
                    return cls.of(_Deferral(deferral.layer, operations, uses), dtype)
                if (rows := _rows_of(func, args)) is not None:
                    view = _View(deferral, func, args[1:])
                    return cls.of(
                        _Deferral(deferral.layer._replace(input=rows), deferral.operations, uses, view), self.dtype
                    )
                if func is Tensor.register_hook and _is_of_fsdp(args[1]):
                    handle = RemovableHandle(uses.hooks)
                    uses.hooks[handle.id] = args[1]
                    return handle
            if func is _torch_cross_entropy and (loss := _loss_by_torchs_name(*args, **(kwargs or {}))) is not None:
                return loss
            if func in _HOOKS and isinstance(self, DeferredLogits) and not any(map(_is_of_fsdp, args[1:])):
                self._deferral.check_gradient()
        return func(*_made(args), **_made(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(
            f"{func} got logits that are not made: give it logits.clone(), or use "
            "`integrations.transformers.unfused_linear_head`"
        )


def _without_memory(layer: _Layer, dtype: torch.dtype, *, requires_grad: bool) -> DeferredLogits:
    """Of the shape of the layer's output."""
    sizes, device = (*layer.input.shape[:-1], layer.weight.shape[0]), layer.input.device
    empty: DeferredLogits = Tensor._make_wrapper_subclass(
        DeferredLogits, sizes, dtype=dtype, device=device, requires_grad=requires_grad
    )
    return empty


def _saving_as_it_is() -> AbstractContextManager[Any]:
    return saved_tensors_hooks(_identity, _identity) if saves_through_hooks() else nullcontext()


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def _made(arguments: Any) -> Any:
    return tree_map_only(DeferredLogits, DeferredLogits.made, arguments)


def _is_float(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    return func is Tensor.float or (func is Tensor.to and args[1:] == (torch.float32,))


def _is_deferrable(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    if len(args) == 1:
        return func in _TANH or func is Tensor.float
    is_scale = func in _SCALES and len(args) == 2 and type(args[1]) in (int, float) and args[1] != 0
    return is_scale or _is_float(func, args)


def _rows_of(func: Callable[..., Any], args: tuple[Any, ...]) -> Tensor | None:
    """The layer's input for what the function gives of the rows; ``None`` where it gives something else."""
    logits, *others = args
    input, num_classes = logits._deferral.layer.input, logits.shape[-1]
    if func in _RESHAPING:
        sizes = others[0] if len(others) == 1 and isinstance(others[0], (tuple, list)) else others
        is_of_rows = len(sizes) > 1 and all(type(size) is int for size in sizes) and sizes[-1] == num_classes
        return input.reshape(*sizes[:-1], input.shape[-1]) if is_of_rows else None
    if func is Tensor.__getitem__:
        index = others[0] if isinstance(others[0], tuple) else (others[0],)
        reaches_classes = Ellipsis in index or len(index) == logits.dim()
        is_of_rows = len(index) <= logits.dim() and all(type(part) in (int, slice, EllipsisType) for part in index)
        is_whole = not reaches_classes or (len(index) > 1 and index[-1] == slice(None))
        return input[others[0]] if is_of_rows and is_whole else None
    return None


def _versions(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in tensors if tensor is not None and not tensor.is_inference())


def _has_hooks(tensor: Tensor) -> bool:
    """Of others than FSDP."""
    return tensor.retains_grad or not all(map(_is_of_fsdp, (tensor._backward_hooks or {}).values()))


def _is_of_fsdp(hook: Any) -> bool:
    return type(getattr(hook, "__self__", None)).__module__.startswith("torch.distributed.fsdp.")


class DeferringLinear(nn.Linear):
    """A linear layer whose result is :class:`DeferredLogits` in training, and as before in evaluation.

    Made by giving a layer this class; fully_shard gives it one that extends this. Under ``no_grad`` and
    ``torch.compile`` it is a linear layer as before.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and not is_compiling():
            keep_weight = getattr(self, "set_reshard_after_forward", None)  # where fully_shard was given this layer
            if keep_weight is not None:
                keep_weight(False, recurse=False)  # the loss is yet to read it
            layer = _Layer.of(input, self.weight, self.bias)
            return DeferredLogits.of(_Deferral(layer, (), _Uses()), layer.autocast_dtype or input.dtype)
        return super().forward(input)


def float32_cross_entropy(
    logits: Tensor, target: Tensor, *, reduction: str, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Tensor:
    """``cross_entropy(logits.float(), ...)`` without that copy, nor the logits where they are deferred.

    Args:
        logits: :math:`(\\dots, C)`.
        target: class indices :math:`(\\dots)`, of any shape of as many.
        reduction: ``"mean"`` or ``"sum"``.
        ignore_index: the class index that does not count.
        label_smoothing: in :math:`[0, 1]`.

    Returns:
        A float32 scalar, of float64 logits too, as they are cast.
    """
    options: dict[str, Any] = dict(reduction=reduction, ignore_index=ignore_index, label_smoothing=label_smoothing)
    target = target.reshape(-1)
    if isinstance(logits, DeferredLogits):
        loss = _loss_without_logits(logits._deferral, target, float32_loss=True, **options)
        if loss is not None:
            return loss.float()
        logits = logits.made()
    logits = logits.reshape(-1, logits.shape[-1])
    if logits.dtype == torch.float64:
        logits = logits.float()
    # Autocast to the type that the logits have casts nothing, and gives the float32 loss of a float32 copy.
    is_half = logits.dtype in HALF_DTYPES
    with torch.autocast(logits.device.type, dtype=logits.dtype) if is_half else nullcontext():
        return cross_entropy(logits, target, **options)


def _loss_without_logits(deferral: _Deferral, target: Tensor, *, float32_loss: bool, **options: Any) -> Tensor | None:
    """Of all rows; ``None`` where the logits are there, or what was done to them is nothing that the loss can do."""
    terms = deferral.scale_and_softcap()
    if terms is None:
        return None
    deferral.check_layer()
    layer = deferral.layer
    input = layer.input.reshape(-1, layer.input.shape[-1])
    options.update(logit_scale=terms[0], softcap=terms[1])
    with layer.autocast(float32_loss=float32_loss):
        loss = linear_cross_entropy(input, layer.weight, target, linear_bias=layer.bias, **options)
    deferral.uses.has_loss = True
    return deferral.hooked(loss)


def _loss_by_torchs_name(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | None:
    """``torch.nn.functional.cross_entropy`` of rows of deferred logits and class indices, which models call whose loss
    is no function of transformers'; ``None`` of anything else."""
    if not isinstance(input, DeferredLogits) or isinstance(target, DeferredLogits) or input.dim() != 2:
        return None
    if not (
        size_average is None and reduce is None and target.dtype == torch.int64 and target.shape == input.shape[:1]
    ):
        return None
    options = dict(weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
    is_float32 = input.dtype == torch.float32
    loss = _loss_without_logits(input._deferral, target, float32_loss=is_float32, **options)
    if loss is None:
        return None
    return loss.float() if is_float32 or torch.is_autocast_enabled(target.device.type) else loss.to(input.dtype)
