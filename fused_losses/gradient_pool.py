"""The memory of large gradients that is kept for the next one: see ``csrc/ops/gradient_pool.h``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ._C import (
    close_gradient_pool_block,
    gradient_pool_limit,
    open_gradient_pool_block,
    set_gradient_pool_limit,
)

__all__ = ["gradient_pool_limit", "limited_gradient_pool", "set_gradient_pool_limit"]


@contextmanager
def limited_gradient_pool(bytes: int) -> Iterator[None]:
    """Another limit for the length of a block, in every thread; 0 while memory is measured.

    Blocks may nest and overlap across threads: the smallest limit of those that are open holds, larger or smaller than
    that of :func:`set_gradient_pool_limit`, which holds again when the last block has ended.
    """
    block = open_gradient_pool_block(bytes)
    try:
        yield
    finally:
        close_gradient_pool_block(block)
