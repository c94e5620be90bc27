"""In words: which way a call would go, and why."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn._reduction import legacy_get_string

from . import _C, functional
from .focal import reason_against_sigmoid_focal_loss
from .linear_losses import reason_against_chunks, reason_against_statistics_by_chunks
from .linear_modules import LinearCrossEntropyLoss, layer_of
from .operators.versions import saves_through_hooks
from .route_log import BY_CLASSES, WATCHED
from .routing import is_dtensor, kernel_route, may_be_differentiated
from .tokens import reason_against_token_statistics
from .torch_losses import LINEAR_CROSS_ENTROPY, NAMES, original_of
from .ways import way_of_call

__all__ = ["explain"]

_MODULES: dict[type[nn.Module], str] = {
    nn.CrossEntropyLoss: "cross_entropy",
    nn.NLLLoss: "nll_loss",
    nn.BCELoss: "binary_cross_entropy",
    nn.BCEWithLogitsLoss: "binary_cross_entropy_with_logits",
    getattr(nn, "LinearCrossEntropyLoss", LinearCrossEntropyLoss): LINEAR_CROSS_ENTROPY,
}

# Of each function that decides for itself: why torch's operators compute a call, and the tensors that it may be
# differentiated with respect to.
_LAYER = ("input", "linear_weight", "linear_bias")
_DECIDING: dict[str, tuple[Callable[..., str | None], tuple[str, ...]]] = {
    LINEAR_CROSS_ENTROPY: (reason_against_chunks, _LAYER),
    "linear_token_statistics": (reason_against_statistics_by_chunks, _LAYER),
    "sigmoid_focal_loss": (reason_against_sigmoid_focal_loss, ("inputs",)),
    "token_statistics": (reason_against_token_statistics, ("logits",)),
}
_LOSSES = (*NAMES, *_DECIDING)
_WITHOUT_PREPARATION = ("nll_loss", "linear_token_statistics", "sigmoid_focal_loss", "token_statistics")

# What a module keeps for its calls.
_KEPT = (
    *("weight", "pos_weight", "ignore_index", "reduction", "label_smoothing", "inplace_gradient"),
    *("logit_scale", "softcap", "lse_square_scale", "focal_gamma", "options"),
)


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Which way the call ``function(*args, **kwargs)`` would take here and now, and why. Nothing is computed.

    Args:
        function: one of the losses that :mod:`torch.nn.functional` has, by its function there or here, or by a module:
            of torch's the answer is what happens under :func:`fused_losses.patch`. Or ``sigmoid_focal_loss``,
            ``token_statistics`` or ``linear_token_statistics``.
        args: as for the call.
        kwargs: as for the call.

    Raises:
        TypeError: ``function`` is none of these, or does not take these arguments.
        Exception: what the call raises, if what is wrong with it is nothing that torch's own function has to say.

    Example::

        >>> import torch, fused_losses
        >>> logits, target = torch.randn(4, 5), torch.zeros(4, dtype=torch.int64)
        >>> fused_losses.explain(fused_losses.functional.cross_entropy, logits.int(), target)
        "torch's own cross_entropy: the logits are no floating-point tensor with a class axis"
    """
    name, options = _loss_of(function)
    if isinstance(function, nn.Module) and len(args) > 2:  # of the call of our module
        args, kwargs = args[:2], {"token_weight": args[2], **kwargs}
    if isinstance(function, nn.Module) and name == LINEAR_CROSS_ENTROPY:
        options["linear_weight"], options["linear_bias"] = layer_of(function)
        args, kwargs = args[:1], {**dict(zip(("target",), args[1:], strict=False)), **kwargs}
    bound = inspect.signature(getattr(functional, name)).bind(*args, **{**options, **kwargs})
    bound.apply_defaults()
    arguments = bound.arguments
    if name in _DECIDING:
        reason_against, inputs = _DECIDING[name]
        reason = reason_against(**arguments)
        return _in_words(name, reason, kernel_route(), [arguments[key] for key in inputs], arguments)
    size_average, reduce = arguments.pop("size_average"), arguments.pop("reduce")
    if size_average is not None or reduce is not None:
        arguments["reduction"] = legacy_get_string(size_average, reduce, emit_warning=False)
    overwrites = arguments.pop("inplace_gradient", False) and not is_dtensor(arguments["input"])
    reason, route = way_of_call(name, **arguments)
    differentiable = [arguments["input"], arguments.get("token_weight")]
    return _in_words(name, reason, route, differentiable, {**arguments, "inplace_gradient": overwrites})


def _loss_of(function: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    """The loss's name, and the arguments that a module keeps."""
    if isinstance(function, nn.Module):
        for module_type, name in _MODULES.items():
            if isinstance(function, module_type):
                options = {key: getattr(function, key) for key in _KEPT if hasattr(function, key)}
                parameters = inspect.signature(getattr(functional, name)).parameters
                return name, {key: value for key, value in options.items() if key in parameters}
    for name in _LOSSES:
        if original_of(function) is original_of(getattr(functional, name)):
            return name, {}
    raise TypeError(f"{function!r} is none of {', '.join(_LOSSES)}, nor a module of one of them")


def _in_words(name: str, reason: str | None, route: str, inputs: list[Any], arguments: dict[str, Any]) -> str:
    """``inputs``: the tensors that the loss may be differentiated with respect to, of some ``None``."""
    if reason is not None:
        return f"torch's own {name}: {reason}"
    tensors = [tensor for tensor in inputs if tensor is not None]
    place = f"CPU, {_C.cpu_capability()}" if tensors[0].is_cpu else "CUDA"
    return f"{route} of {name}: {place}, {_gradient(name, route, tensors, arguments)}"


def _gradient(name: str, route: str, inputs: list[Tensor], arguments: dict[str, Any]) -> str:
    if not any(may_be_differentiated(tensor, kernel_route()) for tensor in inputs):
        return "without a gradient"
    if arguments.get("inplace_gradient"):
        return "the backward writes the gradient over the logits where nothing else needs them"
    if _prepares(name, route, arguments):
        return "with its gradient"
    return "the backward computes the gradient"


def _prepares(name: str, route: str, arguments: dict[str, Any]) -> bool:
    """Whether the forward computes the gradient, unless that is known to be lost work."""
    if name in _WITHOUT_PREPARATION or arguments["reduction"] == "none":
        return False
    if route in (BY_CLASSES, WATCHED) or saves_through_hooks():
        return False
    token_weight = arguments.get("token_weight")
    return token_weight is None or (name == LINEAR_CROSS_ENTROPY and not token_weight.requires_grad)
