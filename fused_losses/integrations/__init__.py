"""The frameworks in which people train: a module for each, with ``enable()`` and ``disable()``.

Each is imported when it is asked for (``fused_losses.integrations.transformers``), and imports its framework then.
:func:`status` says what there is in this environment, and imports none.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

__all__ = ["Integration", "status"]


class Integration(NamedTuple):
    """A framework, and what its integration would do here."""

    name: str
    """Of the module in this package, and of the framework's distribution."""
    version: str | None
    """The installed one, or ``None``."""
    enabled: bool
    """In this process, now."""
    effect: str

    def __str__(self) -> str:
        if self.version is None:
            return f"{self.name}: not installed"
        return f"{self.name} {self.version}, {'enabled' if self.enabled else 'not enabled'}: {self.effect}"


_EFFECTS = {
    "transformers": "enable() gives models and Trainer's label smoothing fused losses that copy no 16-bit logits; "
    "fused_linear_head(model) trains without the logits",
    "timm": "enable() and convert() give its LabelSmoothing-, SoftTarget-, Jsd- and BinaryCrossEntropy fused losses",
    "trl": "enable() replaces its heads without logits, selective_log_softmax, entropy_from_logits and both at once",
    "torchvision": "enable() replaces sigmoid_focal_loss, in its detection models too",
    "lightning": "FusedLosses() is a callback that converts the module's losses, patches torch's, and reports",
}


if not TYPE_CHECKING:  # for which a module with __getattr__ has every name

    def __getattr__(name: str) -> ModuleType:
        if name in _EFFECTS:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def status() -> tuple[Integration, ...]:
    """Every integration, in the order of ``docs/integrations.md``."""
    return tuple(Integration(name, _version(name), _is_enabled(name), effect) for name, effect in _EFFECTS.items())


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_enabled(name: str) -> bool:
    module = sys.modules.get(f"{__name__}.{name}")
    return module is not None and bool(module.is_enabled())
