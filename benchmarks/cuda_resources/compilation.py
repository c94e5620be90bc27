"""Compiles the CUDA sources to PTX and to machine code. What has not changed is not compiled again.

Two calls of nvcc for a source and an architecture, without the host compiler: the PTX has the launch bounds, the
assembler's log the resources, the cubin the instructions.
"""

import hashlib
import re
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cuda_resources.toolchain import Toolchain

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc" / "cuda"
BUILD = ROOT / "build" / "cuda_resources"
FLAGS = ("-std=c++20", "-O3")  # those of setup.py


@dataclass(frozen=True)
class CompiledUnit:
    source: Path
    architecture: int  # 90: compute capability 9.0
    ptx: Path
    cubin: Path
    log: Path  # of the assembler, with -v


class CompilationError(RuntimeError):
    """nvcc refused a source."""


def compile_all(
    toolchain: Toolchain,
    architectures: Sequence[int],
    sources: Sequence[Path] | None = None,
    build: Path = BUILD,
    jobs: int = 2,
) -> list[CompiledUnit]:
    """Every source (by default those of the library) for every architecture."""
    if sources is None:
        sources = sorted(SOURCES.glob("*.cu"))
    pairs = [(source, architecture) for source in sources for architecture in architectures]
    # A file of cross-entropy kernels takes twenty times as long as a small one: those come first.
    pairs.sort(key=lambda pair: "cross_entropy_" not in pair[0].name)
    with ThreadPoolExecutor(jobs) as pool:
        units = list(pool.map(lambda pair: compile_unit(toolchain, pair[0], pair[1], build), pairs))
    return sorted(units, key=lambda unit: (unit.source, unit.architecture))


def compile_unit(toolchain: Toolchain, source: Path, architecture: int, build: Path = BUILD) -> CompiledUnit:
    folder = build / f"sm_{architecture}"
    folder.mkdir(parents=True, exist_ok=True)
    ptx, cubin, log, key_file = (folder / f"{source.stem}.{suffix}" for suffix in ("ptx", "cubin", "log", "key"))
    unit = CompiledUnit(source, architecture, ptx, cubin, log)
    key = content_key(toolchain, source)
    if key_file.exists() and key_file.read_text() == key:
        return unit
    key_file.unlink(missing_ok=True)
    nvcc = toolchain.nvcc
    _run([nvcc, *FLAGS, f"-arch=compute_{architecture}", "-ptx", str(source), "-o", str(ptx)])
    log.write_text(_run([nvcc, "-Xptxas", "-v", f"-arch=sm_{architecture}", "-cubin", str(ptx), "-o", str(cubin)]))
    key_file.write_text(key)  # last: a run that was cut off leaves none
    return unit


def content_key(toolchain: Toolchain, source: Path) -> str:
    """Of all that the result depends on: compiler, flags, this source and every header."""
    digest = hashlib.sha256(repr((toolchain.version, FLAGS, str(source))).encode())
    for path in [source, *_headers(source)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def digest_of_sources() -> str:
    """Of the library's kernels and their headers, whatever their comments and line breaks say."""
    units = sorted(SOURCES.glob("*.cu"))
    digest = hashlib.sha256()
    for path in [*units, *_headers(units[0])]:
        code = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        digest.update(f"{path.name} {' '.join(code.split())}".encode())
    return digest.hexdigest()


def _headers(source: Path) -> Iterable[Path]:
    folders = {source.parent, SOURCES, SOURCES.parent / "core"}
    return sorted(path for folder in folders for path in folder.iterdir() if path.suffix in (".h", ".cuh"))


def _run(command: list[str]) -> str:
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode != 0:
        raise CompilationError(f"{' '.join(command)}\n{finished.stdout}{finished.stderr}")
    return finished.stdout + finished.stderr
