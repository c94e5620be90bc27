"""The CUDA kernels and operators on the host: their sources, compiled against tests/cuda/emulation.

The operators come as ``torch.ops.fused_losses_emulated.*`` and take CPU tensors. With :func:`use` they stand in for the
package's own, so that a test of the losses becomes a test of the CUDA kernels, of the operators around them and of the
way through autograd that GPU tensors take.
"""

from __future__ import annotations

import ctypes
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from compilation import EMULATION, ROOT, compile_source, link
from torch.utils.cpp_extension import include_paths

from fused_losses import _ops
from fused_losses.autograd import placement
from fused_losses.operators import register_operators

BUILD = ROOT / "build" / "emulated_cuda"
FLAGS = [
    *("-std=c++20", "-Og", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"),
    *("-Wno-unused-parameter", "-Wno-unknown-pragmas"),
    *("-DFUSED_LOSSES_EMULATED", "-DTORCH_TARGET_VERSION=0x020a000000000000"),
    f"-I{EMULATION}",
    *(f"-isystem{path}" for path in include_paths()),
]
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
OPERATORS = [
    *sorted((ROOT / "csrc" / "ops" / "cuda").glob("*.cpp")),
    *sorted((ROOT / "csrc" / "ops").glob("*_problem.cpp")),
    *(ROOT / "csrc" / "ops" / f"{name}.cpp" for name in ("class_layout", "index_target", "tensors")),
    EMULATION / "library.cpp",
]
ORDERS = ["ascending", "descending", "random", "warps"]


def build() -> Path:
    """The library."""

    def compile_unit(source: Path) -> Path:
        target = BUILD / torch.__version__ / source.relative_to(ROOT).with_suffix(".o")
        return compile_source(source, target, FLAGS)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compile_unit, [*KERNELS, *OPERATORS]))
    torch_libraries = Path(torch.__file__).parent / "lib"
    library = BUILD / f"emulated_cuda-torch{torch.__version__}.so"
    return link(objects, library, ["-shared", f"-L{torch_libraries}", "-ltorch_cpu", "-lc10", "-ltorch"])


@cache
def load() -> ctypes.CDLL:
    library = build()
    torch.ops.load_library(library)
    register_operators("fused_losses_emulated")
    return ctypes.CDLL(str(library))


def operator_names() -> list[str]:
    """The losses' operators, by their names in fused_losses._ops."""
    operators = {name: value for name, value in vars(_ops).items() if isinstance(value, torch._ops.OpOverload)}
    return [name for name in operators if not name.startswith("_") and name != "elementary_function"]


def use(monkeypatch, test_name: str) -> None:
    """Let the emulated operators stand in for the package's own. Each test has an order of execution of its own."""
    number = zlib.crc32(test_name.encode())
    load().fused_losses_emulation_set_order(number % len(ORDERS), ctypes.c_uint64(number))
    for name in operator_names():
        monkeypatch.setattr(_ops, name, getattr(torch.ops.fused_losses_emulated, name).default)
    monkeypatch.setattr(placement, "is_on_host", lambda tensor: False)
