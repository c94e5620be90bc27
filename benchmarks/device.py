"""What the benchmark needs of a device: a clock, a memory counter, and how much data makes its caches forget."""

from collections.abc import Callable, Iterable
from typing import Protocol

Call = Callable[[], object]


class Device(Protocol):
    """Where calls run. `cpu_device.py` and `cuda_device.py` implement it; tests put a stand-in in its place."""

    @property
    def tensors(self) -> str:
        """Where torch makes the tensors: what goes to ``device=``."""

    @property
    def cold_bytes(self) -> int:
        """How many bytes the inputs of a rotation have together at least; 0 where one warm input is wanted."""

    def seconds(self, calls: Iterable[Call]) -> float:
        """How long the calls take, one after the other."""

    def peak_bytes(self, call: Call) -> int | None:
        """The most memory that the call takes beyond what was there; None where this torch cannot tell."""
