"""Build information, the choice of the CPU instruction set, the pool of gradient memory."""

from typing import Any

def build_info() -> dict[str, Any]:
    """What this extension was built with."""

def available_cpu_capabilities() -> list[str]:
    """Instruction sets that can run here, from the least to the best."""

def cpu_capability() -> str:
    """The instruction set in use."""

def set_cpu_capability(name: str) -> None:
    """Use this instruction set from now on, in every thread; ValueError where it is not available."""

def set_gradient_pool_limit(bytes: int) -> None:
    """Keep at most so much memory of freed gradients for the next ones; 0 switches the pool off.

    Inside a limited_gradient_pool() block, of any thread, it takes effect when the last block ends.
    """

def open_gradient_pool_block(bytes: int) -> int:
    """The limit is this one until close_gradient_pool_block() is called with what is returned."""

def close_gradient_pool_block(block: int) -> None:
    """Ends a block; one that is not open is left alone."""

def gradient_pool_limit() -> int:
    """The most memory of freed gradients that is kept now."""

def num_prepared_gradients() -> int:
    """How many gradients wait for the backward of a compiled graph."""

def gradient_pool_idle_bytes() -> int:
    """How much memory of freed gradients is kept now."""
