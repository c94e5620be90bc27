"""The program of tests/cuda/emulation/kernels.cpp, with the CUDA kernels as they are or with faults planted in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compilation import EMULATION, ROOT, write_if_changed
from sanitized_programs import BUILD, Program, Unit


@dataclass(frozen=True)
class Edit:
    """Text that stands exactly once in a file of csrc, and what takes its place."""

    file: str
    before: str
    after: str


# Two blocks instead of 8192: a few rows are enough for every loop to go round again.
SMALL_GRID = (
    Edit("cuda/launch.h", "kMaxBlocks = 8192", "kMaxBlocks = 2"),
    Edit("cuda/kernels.h", "kMaxBlockSums = 8192", "kMaxBlockSums = 2"),
)


def edited_sources(name: str, edits: tuple[Edit, ...]) -> Path:
    """A copy of csrc/core and csrc/cuda."""
    folder = BUILD / "sources" / name
    sources = {
        path.relative_to(ROOT / "csrc").as_posix(): path.read_text()
        for part in ("core", "cuda")
        for path in (ROOT / "csrc" / part).iterdir()
    }
    for edit in edits:
        count = sources[edit.file].count(edit.before)
        assert count == 1, f"{edit.file} has {count} times: {edit.before}"
        sources[edit.file] = sources[edit.file].replace(edit.before, edit.after)
    for file, text in sources.items():
        write_if_changed(folder / file, text)
    return folder


# The element types that have translation units of their own, which are most of what there is to compile.
ELEMENT_TYPES = {"float32": "float", "float64": "double", "bfloat16": "BFloat16", "float16": "Float16"}

# AddressSanitizer, which takes half a minute for each of their translation units, sees every size of an element. What
# ThreadSanitizer looks for depends on the threads, and on the elements in a packet.
SANITIZED_DTYPES = {"address": ["float32", "float64", "bfloat16"], "thread": ["float32", "bfloat16"]}


def kernels_program(dtypes: Sequence[str], optimization: str = "-O1") -> Program:
    """Of these element types alone: it must not be run for another."""
    absent = [dtype for dtype in ELEMENT_TYPES if dtype not in dtypes]
    dispatch = (
        Edit("cuda/cross_entropy.cu", f"return by_terms<{ELEMENT_TYPES[dtype]}>(params, stream);", "break;")
        for dtype in absent
    )
    name = "-".join(["kernels", *dtypes])
    csrc = edited_sources(name, (*SMALL_GRID, *dispatch))
    sources = [it for it in sorted((csrc / "cuda").glob("*.cu")) if it.stem.rsplit("_", 1)[-1] not in absent]
    kernels = [Unit(source, optimization) for source in sources]
    return Program(name, (*kernels, Unit(EMULATION / "kernels.cpp", optimization, include=csrc)))


def faulty_program(name: str, correct: Program, faulty: str, edits: tuple[Edit, ...]) -> Program:
    """The same program with one file of csrc/cuda made of edited sources."""
    csrc = edited_sources(name, (*SMALL_GRID, *edits))
    replacement = Unit(csrc / "cuda" / faulty, "-O0")  # it is compiled more often than it is run
    units = tuple(replacement if unit.source.name == faulty else unit for unit in correct.units)
    assert replacement in units
    return Program(f"kernels-{name}", units)
