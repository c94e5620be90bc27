"""Which way calls went: counted, and with ``FUSED_LOSSES_LOG=routes`` in the environment said once of each kind."""

from __future__ import annotations

import os
import sys

import torch

from .tracing import constant_while_tracing

__all__ = ["BY_CLASSES", "BY_ROWS", "COMPILED", "EAGER", "WATCHED", "note", "routes"]

# What a route is called where a kernel computes; torch's own function is "torch: " and the reason.
EAGER = "kernel"
WATCHED = "kernel, as an operator"
COMPILED = "kernel, in a compiled graph"
BY_CLASSES = "kernel, spread over a mesh"  # of DTensors
BY_ROWS = "kernel, on the rows of each rank"

_counts: dict[tuple[str, str], int] = {}
_says_new_routes = "routes" in os.environ.get("FUSED_LOSSES_LOG", "").split(",")


def note(loss: str, route: str) -> None:
    """Count a call of the loss."""
    if torch.compiler.is_dynamo_compiling():
        _note_while_tracing(loss, route)
    else:
        _note(loss, route)


def _note(loss: str, route: str) -> None:
    key = (loss, route)
    count = _counts.get(key, 0)
    _counts[key] = count + 1
    if count == 0 and _says_new_routes:
        print(f"fused_losses: {loss}: {route}", file=sys.stderr)


@constant_while_tracing
def _note_while_tracing(loss: str, route: str) -> None:
    """Once for each graph that is traced: what runs of it is the graph."""
    _note(loss, route)


def routes(*, reset: bool = False) -> dict[str, dict[str, int]]:
    """How many calls of each loss went which way, since the start or the last reset.

    A call inside torch.compile is counted when its graph is traced, once for all runs of the graph.

    Args:
        reset: start again at zero.

    Returns:
        By the loss's name the number of calls by route: ``"kernel"`` and its variants, or ``"torch: "`` and the reason.

    Example::

        >>> import torch, fused_losses
        >>> _ = fused_losses.routes(reset=True)
        >>> loss = fused_losses.functional.cross_entropy(torch.randn(4, 5), torch.zeros(4, dtype=torch.int64))
        >>> fused_losses.routes()
        {'cross_entropy': {'kernel': 1}}
    """
    result: dict[str, dict[str, int]] = {}
    for (loss, route), count in list(_counts.items()):
        result.setdefault(loss, {})[route] = count
    if reset:
        _counts.clear()
    return result
