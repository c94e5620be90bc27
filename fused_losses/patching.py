"""Putting the fused losses in the place of torch's: in ``torch.nn.functional``, or in a tree of modules."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import nn
from torch.overrides import handle_torch_function

from . import functional, linear_modules, modules
from .held_functions import Holder, holders_of, loaded_modules
from .name_tables import keep_torchs_functions_known
from .torch_losses import PATCHED_NAMES, is_replacement, mark_as_replacement, original_of

__all__ = ["convert", "is_patched", "patch", "patched", "revert", "unpatch"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# The state outlives importlib.reload(), which keeps a module's names.
_lock: threading.RLock = globals().get("_lock", threading.RLock())
_depth: int = globals().get("_depth", 0)  # of nested patched() blocks
_patched_for_good: bool = globals().get("_patched_for_good", False)
_also: list[tuple[Holder, Callable[..., Any]]] = globals().get("_also", [])  # what patch(also=...) put where

_FUSED_MODULES: dict[type[nn.Module], type[nn.Module]] = {
    nn.CrossEntropyLoss: modules.CrossEntropyLoss,
    nn.NLLLoss: modules.NLLLoss,
    nn.BCELoss: modules.BCELoss,
    nn.BCEWithLogitsLoss: modules.BCEWithLogitsLoss,
}
if hasattr(nn, "LinearCrossEntropyLoss"):
    _FUSED_MODULES[nn.LinearCrossEntropyLoss] = linear_modules.LinearCrossEntropyLoss
_TORCH_MODULES = {fused: original for original, fused in _FUSED_MODULES.items()}


def _handle_torch_function(public_api: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Torch's functions tell a handler who they are by their name in :mod:`torch.nn.functional`, where ours stand."""
    return handle_torch_function(original_of(public_api), *args, **kwargs)


mark_as_replacement(_handle_torch_function, handle_torch_function)
_REPLACEMENTS = {name: getattr(functional, name) for name in PATCHED_NAMES}
_REPLACEMENTS["handle_torch_function"] = _handle_torch_function


def _apply_state() -> None:
    wanted = _patched_for_good or _depth > 0
    if wanted:
        keep_torchs_functions_known()
    for name, ours in _REPLACEMENTS.items():
        current = getattr(F, name)
        if is_replacement(current) or current is original_of(ours):  # somebody else's patch stays
            setattr(F, name, ours if wanted else original_of(current))


def patch(also: Iterable[ModuleType | str] | str = ()) -> None:
    """Replace the losses in :mod:`torch.nn.functional`, and so in every module that calls them there.

    Names that were imported from it before (``from torch.nn.functional import cross_entropy``) stay torch's, and cannot
    be pickled as long as others stand in their place. May be called any number of times, from any thread.

    Args:
        also: modules, or names of modules, or one name, in which such names are replaced too, as are default arguments,
            attributes of classes and items of tables that are one of these functions; in the modules below them as
            well. :func:`fused_losses.explain_patch` lists those that are loaded.

    Raises:
        ValueError: one of ``also`` is not loaded.
    """
    global _patched_for_good
    also = [also] if isinstance(also, str) else also
    names = [module if isinstance(module, str) else module.__name__ for module in also]
    for name in names:
        if name not in sys.modules:
            raise ValueError(f"no module {name!r} is loaded")
    with _lock:
        for name in names:
            ours_of = {original_of(getattr(functional, loss)): getattr(functional, loss) for loss in PATCHED_NAMES}
            for holder in list(holders_of(ours_of, loaded_modules(name))):
                holder.exchange(holder.function, ours_of[holder.function])
                _also.append((holder, ours_of[holder.function]))
        _patched_for_good = True
        _apply_state()


def unpatch() -> None:
    """Undo :func:`patch`. Inside a :func:`patched` block the losses stay replaced until the block ends."""
    global _patched_for_good
    with _lock:
        while _also:
            holder, ours = _also.pop()
            holder.exchange(ours, holder.function)
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
    """Turn torch's loss modules inside ``module``, itself included, into the fused ones, in place; timm's too.

    Weights, hooks and names stay. Subclasses of torch's losses are left alone: what they override is theirs.

    Returns:
        ``module``.
    """
    return _replace_classes(module, {**_FUSED_MODULES, **_timm_classes()})


def revert(module: ModuleT) -> ModuleT:
    """Undo :func:`convert`, in place: the fused loss modules inside ``module``, itself included, become torch's.

    One with options beyond torch's that change the loss, such as a softcap, stays: torch has none that computes it.

    Returns:
        ``module``.
    """
    classes = {**_TORCH_MODULES, **{fused: timms for timms, fused in _timm_classes().items()}}
    return _replace_classes(module, classes, keep=modules.is_beyond_torch)


def _timm_classes() -> dict[type[nn.Module], type[nn.Module]]:
    """Where timm is loaded; where it is not, no module is of its classes."""
    if "timm.loss" not in sys.modules:
        return {}
    from .integrations import timm

    return timm.FUSED_CLASSES


def _replace_classes(
    module: ModuleT,
    classes: dict[type[nn.Module], type[nn.Module]],
    keep: Callable[[nn.Module], bool] = lambda _: False,
) -> ModuleT:
    for child in module.modules():
        replacement = classes.get(type(child))
        if replacement is not None and not keep(child):
            child.__class__ = replacement
    return module
