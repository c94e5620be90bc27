"""Putting the fused losses in the place of torch's: in ``torch.nn.functional``, or in a tree of modules."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.nn.functional as F
from torch import nn

from . import functional, linear_modules, modules
from .torch_losses import PATCHED_NAMES, is_replacement, original_of

__all__ = ["convert", "is_patched", "patch", "patched", "revert", "unpatch"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# The state outlives importlib.reload(), which keeps a module's names.
_lock: threading.RLock = globals().get("_lock", threading.RLock())
_depth: int = globals().get("_depth", 0)  # of nested patched() blocks
_patched_for_good: bool = globals().get("_patched_for_good", False)

_FUSED_MODULES: dict[type[nn.Module], type[nn.Module]] = {
    nn.CrossEntropyLoss: modules.CrossEntropyLoss,
    nn.NLLLoss: modules.NLLLoss,
    nn.BCELoss: modules.BCELoss,
    nn.BCEWithLogitsLoss: modules.BCEWithLogitsLoss,
}
if hasattr(nn, "LinearCrossEntropyLoss"):
    _FUSED_MODULES[nn.LinearCrossEntropyLoss] = linear_modules.LinearCrossEntropyLoss
_TORCH_MODULES = {fused: original for original, fused in _FUSED_MODULES.items()}


def _apply_state() -> None:
    wanted = _patched_for_good or _depth > 0
    for name in PATCHED_NAMES:
        current, fused = getattr(F, name), getattr(functional, name)
        if is_replacement(current) or current is original_of(fused):  # somebody else's patch stays
            setattr(F, name, fused if wanted else original_of(current))


def patch() -> None:
    """Replace the losses in :mod:`torch.nn.functional`, and so in every module that calls them there.

    Names that were imported from it before (``from torch.nn.functional import cross_entropy``) stay torch's, and cannot
    be pickled as long as others stand in their place. May be called any number of times, from any thread.
    """
    global _patched_for_good
    with _lock:
        _patched_for_good = True
        _apply_state()


def unpatch() -> None:
    """Undo :func:`patch`. Inside a :func:`patched` block the losses stay replaced until the block ends."""
    global _patched_for_good
    with _lock:
        _patched_for_good = False
        _apply_state()


@contextmanager
def patched() -> Iterator[None]:
    """:func:`patch` for the length of a block. Blocks may nest and overlap across threads: the last to end restores.

    The replacement is seen by every thread, since it is made in the module :mod:`torch.nn.functional` itself.
    """
    global _depth
    with _lock:
        _depth += 1
        _apply_state()
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            _apply_state()


def is_patched() -> bool:
    """Whether ``torch.nn.functional.cross_entropy`` is the fused one now."""
    return is_replacement(F.cross_entropy)


def convert(module: ModuleT) -> ModuleT:
    """Turn torch's loss modules inside ``module``, itself included, into the fused ones, in place.

    Weights, hooks and names stay. Subclasses of torch's losses are left alone: what they override is theirs.

    Returns:
        ``module``.
    """
    return _replace_classes(module, _FUSED_MODULES)


def revert(module: ModuleT) -> ModuleT:
    """Undo :func:`convert`.

    Returns:
        ``module``.
    """
    return _replace_classes(module, _TORCH_MODULES)


def _replace_classes(module: ModuleT, classes: dict[type[nn.Module], type[nn.Module]]) -> ModuleT:
    for child in module.modules():
        replacement = classes.get(type(child))
        if replacement is not None:
            child.__class__ = replacement
    return module
