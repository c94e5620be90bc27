"""How many instructions a GPU can issue while its memory moves what a problem needs: the roofline's other axis.

A kernel that issues more is bound by instructions, whatever its occupancy; one that issues fewer may be bound by much
else. Nothing here was measured.
"""

from dataclasses import dataclass

ISSUE_SLOTS = 128  # a clock and SM, of single threads: 4 schedulers, a warp each
# Results a clock and SM of the special function units: CUDA Programming Guide, throughput of native arithmetic
# instructions; 16 for every compute capability from 8.0 to 12.0.
SPECIAL_SLOTS = 16


@dataclass(frozen=True)
class Device:
    """Figures of NVIDIA's data sheets and architecture white papers."""

    name: str
    architecture: int  # whose machine code it runs, of those that are built
    gigabytes_per_second: int
    multiprocessors: int
    gigahertz: float

    @property
    def bytes_per_clock(self) -> float:
        """Of one SM, at its share of the memory."""
        return self.gigabytes_per_second / self.multiprocessors / self.gigahertz

    def instructions(self, moved_bytes: float) -> float:
        """How many thread-instructions can be issued while so many bytes are moved."""
        return moved_bytes / self.bytes_per_clock * ISSUE_SLOTS

    def special_functions(self, moved_bytes: float) -> float:
        return moved_bytes / self.bytes_per_clock * SPECIAL_SLOTS


DEVICES = (
    # A100 80GB data sheet, GA100 white paper
    Device("A100", 80, 2039, 108, 1.41),
    # Ada white paper: compute capability 8.9, for which 8.6 is the nearest that is built
    Device("RTX 4090", 86, 1008, 128, 2.52),
    # H100 SXM data sheet, GH100 white paper; the clock is that of the H100 PCIe, which leaves fewer instructions a byte
    Device("H100", 90, 3350, 132, 1.755),
    # HGX B200 data sheet: 75 TFLOPS of float32, 2 a clock and lane of 148 SMs
    Device("B200", 100, 8000, 148, 1.965),
)
