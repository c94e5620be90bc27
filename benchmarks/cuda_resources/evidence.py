"""Everything that is known of every kernel on every architecture."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cuda_resources.compilation import CompiledUnit
from benchmarks.cuda_resources.kernel_names import demangle, natural_order
from benchmarks.cuda_resources.machine_code import (
    GlobalAccesses,
    count_in_machine_code,
    count_in_ptx,
    disassemble,
    should_be_wide,
    should_store,
)
from benchmarks.cuda_resources.occupancy import Occupancy, occupancy
from benchmarks.cuda_resources.resources import Resources, parse_resources
from benchmarks.cuda_resources.toolchain import Toolchain


@dataclass(frozen=True)
class Evidence:
    source: str
    kernel: str
    architecture: int
    resources: Resources
    occupancy: Occupancy
    accesses: GlobalAccesses

    def __str__(self) -> str:
        return f"{self.source}: {self.kernel} on {capability(self.architecture)}"

    @property
    def lacks_wide_accesses(self) -> bool:
        lacks_stores = should_store(self.kernel) and not self.accesses.wide_stores
        return should_be_wide(self.kernel) and (not self.accesses.wide_loads or lacks_stores)


def collect(toolchain: Toolchain, units: Sequence[CompiledUnit]) -> list[Evidence]:
    """In the order of the units and of the kernels' names."""
    return [evidence for unit in units for evidence in _collect_unit(toolchain, unit)]


def complaints(evidence: Sequence[Evidence]) -> list[str]:
    """What must not be: spilled registers, arrays in local memory, packets that are not moved 16 bytes at a time."""
    found = [f"{it} spills {it.resources.spill_bytes} bytes" for it in evidence if it.resources.spill_bytes]
    # An array with an index that the compiler does not know is no spill, and as slow.
    found += [
        f"{it} has {it.resources.stack_bytes} bytes in local memory"
        for it in evidence
        if it.resources.stack_bytes and not it.resources.spill_bytes
    ]
    found += [f"{it} lacks 16-byte accesses: {it.accesses}" for it in evidence if it.lacks_wide_accesses]
    return found


def capability(architecture: int) -> str:
    return f"{architecture // 10}.{architecture % 10}"


def _collect_unit(toolchain: Toolchain, unit: CompiledUnit) -> list[Evidence]:
    ptx = unit.ptx.read_text()
    resources = parse_resources(unit.log.read_text(), ptx)
    if not resources:
        return []
    if toolchain.disassembler is None:
        accesses = count_in_ptx(ptx)
    else:
        accesses = count_in_machine_code(disassemble(unit.cubin, toolchain.disassembler))
    names = demangle(resources, toolchain.demangler)
    return [
        Evidence(
            source=unit.source.name,
            kernel=names[kernel],
            architecture=unit.architecture,
            resources=resources[kernel],
            occupancy=occupancy(resources[kernel], unit.architecture),
            accesses=accesses[kernel],
        )
        for kernel in sorted(resources, key=lambda kernel: natural_order(names[kernel]))
    ]
