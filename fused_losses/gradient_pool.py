"""The memory of large gradients that is kept for the next one: see ``csrc/ops/gradient_pool.h``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ._C import gradient_pool_limit, set_gradient_pool_limit

__all__ = ["gradient_pool_limit", "limited_gradient_pool", "set_gradient_pool_limit"]


@contextmanager
def limited_gradient_pool(bytes: int) -> Iterator[None]:
    """:func:`set_gradient_pool_limit` for the length of a block, in every thread; 0 while memory is measured."""
    limit = gradient_pool_limit()
    set_gradient_pool_limit(bytes)
    try:
        yield
    finally:
        set_gradient_pool_limit(limit)
