"""In the graphs that inductor compiles, negative log-likelihood of a ``log_softmax`` is cross-entropy of its logits.

Inductor fuses torch's own pair into sweeps over the logits that write no log-probabilities; before an operator of ours
it would write them, and the step would be slower than without us. One operator for both is quicker than either. Two
operators stay two where something between them may write memory or switches a mode, and where the log-probabilities are
of another axis or type; log-probabilities that are read elsewhere, too, are made for those who read them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

import torch
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
_IN_PLACE = "add and concat floordiv lshift matmul mod mul or pow rshift sub truediv xor"
_WRITES = {operator.setitem, operator.delitem, *(getattr(operator, f"i{name}") for name in _IN_PLACE.split())}


@constant_while_tracing
def join_with_log_softmax() -> None:
    """Have inductor do it from now on, in any graph; again does nothing."""
    _join_when_inductor_comes()


@cache
def _join_when_inductor_comes() -> None:
    when_imported("torch._inductor.fx_passes.pre_grad", _register)


def _register(passes: ModuleType) -> None:
    """Among patterns that inductor looks for before it differentiates. Users have but one place for a pass of theirs
    there, ``pre_grad_custom_pass``, which stays free. Without this list, the graphs stay as they are."""
    patterns = getattr(passes, "efficient_conv_bn_eval_pass", None)
    if patterns is None:
        return
    from torch._inductor.pattern_matcher import CallFunctionVarArgs, register_graph_pattern

    losses = CallFunctionVarArgs([_ops.nll_loss, _ops.nll_loss_forward])
    register_graph_pattern(losses, extra_check=_is_joined, pass_dict=patterns)(_join)


def _is_joined(match: Any) -> bool:
    return _cross_entropy_of(match.output_node()) is not None


def _join(match: Any, *_: Any, **__: Any) -> None:
    loss = match.output_node()
    arguments = _cross_entropy_of(loss)
    assert arguments is not None
    log_softmax = loss.args[0]
    if loss.target is _ops.nll_loss_forward:
        joined = loss.graph.call_function(_ops.cross_entropy_forward, arguments)
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
    if any(_may_write(node) for node in _between(log_softmax, loss)):
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
    """The tensor without numbers that Dynamo had for the node."""
    return node.meta.get("example_value") if isinstance(node, Node) else None


def _between(first: Node, last: Node) -> Iterator[Node]:
    node = first.next
    while node is not last:
        yield node
        node = node.next


def _may_write(node: Node) -> bool:
    """Memory or a mode. A graph before differentiation is not functional."""
    from torch._inductor.pattern_matcher import is_mutation_op

    if node.op not in ("call_function", "call_method"):
        return node.op == "call_module"
    is_higher_order = isinstance(node.target, torch._ops.HigherOrderOperator)
    return is_higher_order or node.target in _WRITES or bool(is_mutation_op(node))
