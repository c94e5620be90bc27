"""Functions that Dynamo does not trace: it calls them while it traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["constant_while_tracing"]

_Function = TypeVar("_Function", bound=Callable[..., object])


def constant_while_tracing(function: _Function) -> _Function:
    """Mark as ``torch.compiler.assume_constant_result`` does, which would import the whole of Dynamo for it.

    That import takes two seconds, and most programs that import this package compile nothing.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
