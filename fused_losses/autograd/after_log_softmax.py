"""In the graphs that inductor compiles, negative log-likelihood of a ``log_softmax`` is cross-entropy of its logits.

Inductor fuses torch's own pair into sweeps over the logits that write no log-probabilities; before an operator of ours
it would write them, and the step would be slower than without us. One operator for both is quicker than either. Two
operators stay two where what stands behind the first is not known to be pure, and where the log-probabilities are
of another axis or type; log-probabilities that are read elsewhere, too, are made for those who read them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch.amp import autocast_mode as amp
from torch.fx import Node

from .. import _ops
from ..import_hooks import when_imported
from ..operators.class_axis import class_dim
from ..operators.cross_entropy import refusal
from ..routing import HALF_DTYPES
from ..tracing import constant_while_tracing

__all__ = ["join_with_log_softmax"]

_PARAMETERS: dict[Any, tuple[str, ...]] = {
    torch.nn.functional.log_softmax: ("input", "dim", "_stacklevel", "dtype"),
    torch.log_softmax: ("input", "dim", "dtype"),
    torch.special.log_softmax: ("input", "dim", "dtype"),
    "log_softmax": ("input", "dim", "dtype"),
}
# What may stand behind the log_softmax. Dynamo's graphs are not functional: anything else may write memory, before the
# loss or before its backward, switch a mode, or hang a hook on the log-probabilities.
_OF_TENSORS = ("argmax", "div", "eq", "exp", "flatten", "log", "mean", "mul", "reshape", "squeeze", "sub", "sum")
_PURE_METHODS = {
    *_OF_TENSORS,
    "__eq__",
    "detach",
    "dim",
    "double",
    "float",
    "int",
    "item",
    "long",
    "size",
    "to",
    "view",
}
_OPERATORS = (operator.add, operator.eq, operator.getitem, operator.mul, operator.neg, operator.sub, operator.truediv)
_PURE_FUNCTIONS = {
    getattr,
    *_OPERATORS,
    *(getattr(torch, name) for name in _OF_TENSORS),
    torch.stack,
    torch._C._nn.linear,
}

# Behind the loss modes may be switched.
_SWITCHES = {amp._enter_autocast, amp._exit_autocast, torch._C._set_grad_enabled}


@constant_while_tracing
def join_with_log_softmax() -> None:
    """Make inductor join them in every graph from now on; calling it again does nothing."""
    _join_when_inductor_comes()


@cache
def _join_when_inductor_comes() -> None:
    when_imported("torch._inductor.fx_passes.pre_grad", _register)


def _register(passes: ModuleType) -> None:
    """Adds the pattern to a list that inductor searches before it differentiates: the public hook,
    ``pre_grad_custom_pass``, holds one pass and is the user's. In a torch without this list the graphs stay as they
    are."""
    patterns = getattr(passes, "efficient_conv_bn_eval_pass", None)
    if patterns is None:
        return
    from torch._inductor.pattern_matcher import CallFunctionVarArgs, register_graph_pattern

    losses = CallFunctionVarArgs([_ops.nll_loss, _ops.nll_loss_forward])
    register_graph_pattern(losses, pass_dict=patterns)(_join)


def _join(match: Any, *_: Any, **__: Any) -> None:
    loss = match.output_node()
    arguments = _cross_entropy_of(loss)
    if arguments is None:
        return
    log_softmax = loss.args[0]
    if loss.target is _ops.nll_loss_forward:
        joined = loss.graph.call_function(_ops.cross_entropy_forward, arguments)
    elif not _value(arguments[0]).requires_grad:
        joined = loss.graph.call_function(_ops.cross_entropy, arguments)
    else:
        loss_and_more = loss.graph.call_function(_ops.cross_entropy_prepared, arguments)
        joined = loss.graph.call_function(operator.getitem, (loss_and_more, 0))
    joined.meta.update(loss.meta)
    loss.replace_all_uses_with(joined)
    loss.graph.erase_node(loss)
    if not log_softmax.users:
        loss.graph.erase_node(log_softmax)


def _cross_entropy_of(loss: Node) -> tuple[Any, ...] | None:
    """The arguments of the one operator for both, or ``None`` where they stay two."""
    arguments: Any = loss.args
    log_softmax, target, weight, reduction, ignore_index, promote = arguments
    logits = _logits_of(log_softmax)
    logits_value, target_value, weight_value, log_softmax_value = map(_value, (logits, target, weight, log_softmax))
    if logits_value is None or log_softmax_value is None or target_value is None:
        return None
    if logits_value.dtype != log_softmax_value.dtype:  # autocast: from 16 bits to float32
        promote = logits_value.dtype in HALF_DTYPES and log_softmax_value.dtype == torch.float32
        if not promote:
            return None
    if refusal(logits_value, target_value, weight_value, ignore_index, 0.0, promote) is not None:
        return None
    is_behind_loss = False
    for node in _after(log_softmax):
        is_behind_loss |= node is loss
        if not (_is_pure(node) or (is_behind_loss and node.target in _SWITCHES)):
            return None
    return logits, target, weight, reduction, ignore_index, 0.0, promote


def _logits_of(log_softmax: Any) -> Node | None:
    """What a loss's log-probabilities are the ``log_softmax`` of over the classes, or ``None``."""
    if not isinstance(log_softmax, Node) or log_softmax.target not in _PARAMETERS:
        return None
    named: Any = dict(zip(_PARAMETERS[log_softmax.target], log_softmax.args, strict=False)) | log_softmax.kwargs
    logits, dim = named.get("input"), named.get("dim")
    if not isinstance(logits, Node) or not isinstance(dim, int) or named.get("dtype") is not None:
        return None
    value = _value(logits)
    return logits if value is not None and dim % value.dim() == class_dim(value.shape) else None


def _value(node: Any) -> Any:
    """The fake tensor that Dynamo recorded for the node."""
    return node.meta.get("example_value") if isinstance(node, Node) else None


def _after(node: Node) -> Iterator[Node]:
    while (node := node.next).op != "root":  # the list of a graph's nodes is a ring
        yield node


def _is_pure(node: Node) -> bool:
    if node.kwargs.get("out") is not None:
        return False
    if node.op == "call_method":
        return node.target in _PURE_METHODS
    if node.op == "call_function":
        if isinstance(node.target, torch._ops.OpOverload):
            return not node.target._schema.is_mutable
        return node.target in _PURE_FUNCTIONS
    return node.op in ("placeholder", "get_attr", "output")
