"""In words: what of the modules that are loaded patch() and convert() do not reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from .held_functions import Holder, holders_of, is_outside_torch, loaded_modules, outside_torch
from .torch_losses import PATCHED_NAMES, torch_function

__all__ = ["PatchReport", "explain_patch"]

_CLASSES = [
    getattr(nn, name)
    for name in ("CrossEntropyLoss", "NLLLoss", "BCELoss", "BCEWithLogitsLoss", "LinearCrossEntropyLoss")
    if hasattr(nn, name)
]


@dataclass(frozen=True)
class PatchReport:
    """What was found. As a string it is a line for each."""

    holders: tuple[Holder, ...]
    """Places that hold a loss function of torch's under a name of their own: ``patch(also=...)`` reaches them."""
    subclasses: tuple[type[nn.Module], ...]
    """Classes that extend a loss module of torch's: :func:`fused_losses.convert` leaves their instances."""

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules of the holders: for ``patch(also=report.modules)``."""
        return tuple(dict.fromkeys(holder.module for holder in self.holders))

    def __str__(self) -> str:
        lines = [
            f"{module}: {place} is torch's {function.__name__}: patch(also=[{module!r}]) replaces it"
            for module, place, function, _ in self.holders
        ]
        lines += [f"{_full_name(subclass)}: {_of_subclass(subclass)}" for subclass in self.subclasses]
        return "\n".join(lines) or "patch() reaches every loss function of the modules that are loaded"


def explain_patch() -> PatchReport:
    """What :func:`fused_losses.patch` and :func:`fused_losses.convert` do not reach in the modules loaded now.

    Found are globals (``from torch.nn.functional import cross_entropy``), items of tables that are globals, partials,
    default arguments and attributes of classes that are one of torch's losses, and subclasses of its loss modules. Not
    found is what a closure or an object holds. Nothing is imported, called or changed.

    Returns:
        What was found; ``print()`` shows it.

    Example::

        >>> import types, sys
        >>> from torch.nn.functional import cross_entropy
        >>> sys.modules["my_losses"] = types.ModuleType("my_losses")
        >>> sys.modules["my_losses"].loss_of = cross_entropy
        >>> report = explain_patch()
        >>> [line for line in str(report).splitlines() if "my_losses" in line]
        ["my_losses: loss_of is torch's cross_entropy: patch(also=['my_losses']) replaces it"]
        >>> del sys.modules["my_losses"]
    """
    functions = [torch_function(name) for name in PATCHED_NAMES]
    holders = holders_of(functions, outside_torch(loaded_modules()))
    subclasses = (subclass for loss in _CLASSES for subclass in _subclasses_of(loss))
    return PatchReport(tuple(holders), tuple(dict.fromkeys(subclasses)))


def _subclasses_of(loss: type[nn.Module]) -> Iterator[type[nn.Module]]:
    for subclass in loss.__subclasses__():
        if is_outside_torch(subclass.__module__):
            yield subclass
            yield from _subclasses_of(subclass)


def _full_name(subclass: type) -> str:
    return f"{subclass.__module__}.{subclass.__qualname__}"


def _of_subclass(subclass: type[nn.Module]) -> str:
    owner = next(base for base in subclass.__mro__ if "forward" in vars(base))
    if owner.__module__.partition(".")[0] == "torch":
        return f"its forward is that of torch.nn.{owner.__name__}: patch() reaches it, convert() leaves it"
    return "it has a forward of its own: patch() reaches what that calls in torch.nn.functional, convert() leaves it"
