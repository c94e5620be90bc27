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
* ``create_graph=True`` and everything else that is left to torch never writes over anything.

What autograd does not know of cannot be seen: an alias without a version counter in common (``.data``, NumPy's view of
the logits), and a ``.grad`` that is the very memory of the logits because a sum passed the gradient through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd.graph import increment_version

from .backward import keeps_graph
from .eager import saves_through_hooks


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


def overwrite(logits: Tensor, write: Callable[..., None], *arguments: Any) -> Tensor | None:
    """``write(*arguments)``, which puts the gradient over the logits; nothing where it must have memory of its own."""
    if keeps_graph():
        return None
    try:
        write(*arguments)
    except ValueError:  # no place for it there
        return None
    increment_version(logits)
    return logits.detach()
