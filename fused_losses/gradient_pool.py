"""The memory of large gradients that is kept for the next one: see ``csrc/ops/gradient_pool.h``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import _C

__all__ = ["gradient_pool_limit", "limited_gradient_pool", "set_gradient_pool_limit"]


def gradient_pool_limit() -> int:
    """The most memory of freed gradients that is kept now, in bytes."""
    return _C.gradient_pool_limit()


def set_gradient_pool_limit(bytes: int) -> None:
    """Keep at most so much memory of freed gradients for the next ones; 0 switches the pool off.

    Inside a :func:`limited_gradient_pool` block, of any thread, it takes effect when the last block ends.

    Args:
        bytes: the limit; 2 GiB unless set.

    Raises:
        TypeError: the limit is negative, or no integer.
    """
    _C.set_gradient_pool_limit(bytes)


@contextmanager
def limited_gradient_pool(bytes: int) -> Iterator[None]:
    """Another limit for the length of a block, in every thread; 0 while memory is measured.

    Blocks may nest and overlap across threads: the smallest limit of those that are open holds, larger or smaller than
    that of :func:`set_gradient_pool_limit`, which holds again when the last block has ended.

    Args:
        bytes: the limit; 0 switches the pool off.

    Raises:
        TypeError: the limit is negative, or no integer.
    """
    block = _C.open_gradient_pool_block(bytes)
    try:
        yield
    finally:
        _C.close_gradient_pool_block(block)
