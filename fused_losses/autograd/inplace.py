"""The gradient in the place of the logits.

Note [Gradient over the logits]
``inplace_gradient=True`` lets the backward write the gradient into the memory of the logits, so that a step holds one
tensor of that size instead of two. Nothing is corrupted in silence:

* what torch refuses to see modified in place is refused here in the same words: a leaf that requires grad, or a view of
  one;
* the logits' version is counted up, so that whoever saved them, or saved something that shares their memory, finds
  them modified and raises torch's usual error: a second loss of the same logits, a softmax that saved its result;
* the gradient gets memory of its own where the graph is kept (``retain_graph=True``), where saved tensors pass through
  hooks, where the target or a weight shares the logits' memory, where two logits share an address (``expand``), and
  where the kernels work on a copy of the logits (odd strides, strides that probability targets do not share, or the
  negative view that ``imag`` of a conjugate is);
* and where Python runs between this backward and the next that may read the logits: a hook on them or on a tensor that
  they are a view of, ``retain_grad()``, a hook or prehook on the node that made them;
* ``create_graph=True`` and everything else that takes the differentiable operator never writes over anything.

What autograd does not show cannot be seen, and reads a gradient in the place of logits: an alias without a version
counter in common (``.data``, NumPy's view of the logits); a hook of a parameter or of another tensor, or a function
that a non-reentrant checkpoint runs again, that holds the logits in a variable of its own; a hook on a view between the
logits and what they are a view of; a ``.grad`` that is the very memory of the logits because a sum passed the gradient
through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node, increment_version

from ..operators.versions import saves_through_hooks
from .backward import keeps_graph


def may_overwrite(logits: Tensor, *others: Tensor | None) -> bool:
    """Whether the backward may write over the logits.

    Raises:
        RuntimeError: they are a leaf that requires grad, or a view of one.
    """
    if logits.is_leaf:
        raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
    base = logits._base
    if base is not None and base.is_leaf and base.requires_grad:
        raise RuntimeError("a view of a leaf Variable that requires grad is being used in an in-place operation.")
    memory = logits.untyped_storage().data_ptr()
    shared = any(tensor is not None and tensor.untyped_storage().data_ptr() == memory for tensor in others)
    return not shared and not logits.is_neg() and not saves_through_hooks()


def overwrite(logits: Tensor, write: Callable[..., bool], *arguments: Any) -> Tensor | None:
    """``write(*arguments)``, which puts the gradient over the logits; nothing where it must have memory of its own."""
    if keeps_graph() or _may_be_read(logits) or not write(*arguments):
        return None
    increment_version(logits)
    return logits.detach()


def _may_be_read(logits: Tensor) -> bool:
    """Whether hooks that hang on the logits, their base or their nodes run after this backward."""
    return any(_has_hooks(tensor) for tensor in (logits, logits._base) if tensor is not None)


def _has_hooks(tensor: Tensor) -> bool:
    node = tensor.grad_fn
    return bool(tensor._backward_hooks) or tensor.retains_grad or (node is not None and _has_hooks_of_node(node))


def _has_hooks_of_node(node: Node) -> bool:
    """A node does not list its hooks; a handle of one refers to all of them."""
    handles = (node.register_prehook(_nothing), node.register_hook(_nothing))
    counts = [len(handle.hooks_dict_ref() or ()) for handle in handles]
    for handle in handles:
        handle.remove()
    return any(count != 1 for count in counts)


def _nothing(*_: Any) -> None:
    """A hook that changes nothing."""
