"""Functions of packages that may not be installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

__all__ = ["load_peers"]

_Function = TypeVar("_Function")


def load_peers(loaders: Mapping[str, Callable[[], _Function]]) -> tuple[dict[str, _Function], dict[str, str]]:
    """Those that are installed, and why each of the others is not there."""
    present, absent = {}, {}
    for name, load in loaders.items():
        try:
            present[name] = load()
        except Exception as error:  # whatever another project's import raises is why it is absent
            absent[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
    return present, absent
