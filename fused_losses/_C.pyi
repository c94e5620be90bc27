"""Build information and the choice of the CPU instruction set."""

from typing import Any

def build_info() -> dict[str, Any]:
    """What this extension was built with."""

def available_cpu_capabilities() -> list[str]:
    """Instruction sets that can run here, from the least to the best."""

def cpu_capability() -> str:
    """The instruction set in use."""

def set_cpu_capability(name: str) -> None:
    """Use this instruction set from now on, in every thread; ValueError where it is not available."""
