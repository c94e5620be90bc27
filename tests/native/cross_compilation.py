"""The CPU kernels for aarch64, compiled and run on another processor: the programs of tests/native/cpu_kernels."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from compilation import ROOT, compile_source, link

BUILD = ROOT / "build" / "cross_compiled" / "aarch64"
COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"


@cache
def unavailable() -> str | None:
    """Why nothing can be compiled for aarch64 and run here, or nothing."""
    for command, package in ((COMPILER, "g++-aarch64-linux-gnu"), (EMULATOR, "qemu-user")):
        if shutil.which(command) is None:
            return f"there is no {command} (Debian: {package})"
    return None


@cache
def build_setting(name: str) -> list[str]:
    """A list that setup.py writes out."""
    for statement in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            return ast.literal_eval(statement.value)
    raise LookupError(f"setup.py has no {name}")


def compile_unit(name: str, flags: list[str]) -> Path:
    return compile_source(ROOT / name, (BUILD / name).with_suffix(".o"), flags, [COMPILER])


@cache
def program(name: str, *helpers: str) -> Path:
    """Of a source in tests/native/cpu_kernels and those that it needs, with all kernels. Static: it takes no libraries
    of aarch64 to run."""
    # The flags of the real build. aarch64 has one set of kernels alone.
    kernel_flags = [*build_setting("COMPILE_FLAGS"), *build_setting("KERNEL_FLAGS")]
    kernel_flags += ["-DFUSED_LOSSES_CAPABILITY=baseline"]
    # GCC has the type under this name before it has C++'s.
    flags = ["-std=c++20", "-O1", "-D_Float16=__fp16", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests'}"]
    units = [(source, kernel_flags) for source in build_setting("KERNEL_SOURCES")]
    units += [(f"csrc/{stem}.cpp", flags) for stem in ("cpu/capability", "ops/transformed_cross_entropy")]
    units += [(f"tests/native/cpu_kernels/{stem}.cpp", flags) for stem in (name, *helpers)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compile_unit, *zip(*units, strict=True)))
    return link(objects, BUILD / name, ["-static"], [COMPILER])


def run(binary: Path, *arguments: str, numbers: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [EMULATOR, str(binary), *arguments], input=numbers, capture_output=True, timeout=600, check=False
    )
