"""The evidence as Markdown: one table for each source, one row for each kernel."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from benchmarks.cuda_resources.compilation import FLAGS, digest_of_sources
from benchmarks.cuda_resources.evidence import Evidence, capability, complaints
from benchmarks.cuda_resources.machine_code import GlobalAccesses
from benchmarks.cuda_resources.occupancy import LIMITS, Resource
from benchmarks.cuda_resources.toolchain import Toolchain

LETTERS: dict[Resource, str] = {"warps": "W", "blocks": "B", "registers": "R", "shared memory": "S"}

INTRODUCTION = """\
# What nvcc makes of the CUDA kernels

Written by `python -m benchmarks.cuda_resources --write docs/cuda_resources.md`: nvcc {nvcc}, flags `{flags}`. These are
facts about machine code, not about speed. {kernels} kernels on {count} architectures, {complaints} complaints (a spill,
or a packet that is not moved whole). Digest of the sources, without their comments: `{digest}`.

In the column of an architecture: registers of a thread, occupancy, and what limits it (R registers, W warp slots, B
block slots, S shared memory). **Bold: spilled registers, bytes of a thread.** Occupancy is theoretical: the share of
an SM's warp slots that the resident blocks fill. Its limits are those of the
[CUDA Programming Guide, 5.1](https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html)
({limits}; 65536 registers an SM, allotted to warps in units of 256), its formula is that of the toolkit's
`cuda_occupancy.h`. Loads and stores: accesses to global memory of 16 bytes + narrower ones{where}, over all
architectures. The narrower ones are targets, weights, statistics, and the edges of rows that are not aligned.
"""


def write_markdown(evidence: Sequence[Evidence], toolchain: Toolchain) -> str:
    architectures = sorted({it.architecture for it in evidence})
    introduction = INTRODUCTION.format(
        nvcc=toolchain.version,
        flags=" ".join(FLAGS),
        kernels=len(evidence),
        count=len(architectures),
        complaints=len(complaints(evidence)),
        digest=digest_of_sources(),
        limits=", ".join(_limits(architecture) for architecture in architectures),
        where=" in the machine code" if toolchain.disassembler else " in the PTX, as there is no nvdisasm here",
    )
    tables = [
        f"## {source}\n\n{_table(list(group), architectures)}"
        for source, group in groupby(evidence, key=lambda it: it.source)
    ]
    return "\n".join([introduction, *tables])


def _limits(architecture: int) -> str:
    limits = LIMITS[architecture]
    return f"{capability(architecture)}: {limits.warps} warps, {limits.blocks} blocks, {limits.shared_bytes >> 10} KB"


def _table(evidence: Sequence[Evidence], architectures: Sequence[int]) -> str:
    titles = ["kernel", "threads", "shared", *map(capability, architectures), "loads", "stores"]
    lines = [row(titles), row([":--"] + ["--:"] * (len(titles) - 1))]
    kernels: dict[str, dict[int, Evidence]] = {}
    for it in evidence:
        kernels.setdefault(it.kernel, {})[it.architecture] = it
    for kernel, of_architecture in kernels.items():
        everywhere = list(of_architecture.values())
        cells = [
            f"`{kernel}`",
            _range(it.resources.threads for it in everywhere),
            _range(it.resources.shared_bytes for it in everywhere),
            *(_figures(of_architecture[architecture]) for architecture in architectures),
            _counts(everywhere, lambda it: it.wide_loads, lambda it: it.narrow_loads),
            _counts(everywhere, lambda it: it.wide_stores, lambda it: it.narrow_stores),
        ]
        lines.append(row(cells))
    return "\n".join(lines) + "\n"


def _figures(it: Evidence) -> str:
    figures = f"{it.resources.registers}, {it.occupancy.fraction:.0%} {LETTERS[it.occupancy.limited_by]}"
    return f"**{figures}, {it.resources.spill_bytes} B spilled**" if it.resources.spill_bytes else figures


Count = Callable[[GlobalAccesses], int]


def _counts(evidence: Sequence[Evidence], wide: Count, narrow: Count) -> str:
    return f"{_range(wide(it.accesses) for it in evidence)} + {_range(narrow(it.accesses) for it in evidence)}"


def _range(values: Iterable[int]) -> str:
    different = sorted(set(values))
    return str(different[0]) if len(different) == 1 else f"{different[0]}-{different[-1]}"


def row(cells: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"
