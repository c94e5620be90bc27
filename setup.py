"""Builds fused_losses._C: operators on torch's stable ABI, CPU kernels compiled once per instruction set."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
VERSION = (ROOT / "fused_losses" / "_version.py").read_text().split('"')[1]

# The oldest torch whose ABI the library needs (major, minor, patch in the top bytes); later ones serve it too.
TORCH_TARGET = 0x020A000000000000

# -ffp-contract=fast: a product and a sum become one FMA where the instruction set has it.
COMPILE_FLAGS = ["-std=c++20", "-O2", "-g0", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden"]
KERNEL_FLAGS = [
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    "-fno-exceptions",
]

# -mno-mmx: GCC moves 8-byte vectors through MMX registers now and then, which leaves the x87 unit unusable for the next
# code that computes in long double.
X86_FLAGS = ["-mno-mmx"]

# The name of each instruction set in csrc/cpu/kernels.h and the flags that its copy of the kernels is compiled with.
CAPABILITIES: dict[str, list[str]] = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    avx2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt"]
    avx512 = ["-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
    CAPABILITIES = {"baseline": X86_FLAGS, "avx2": [*X86_FLAGS, *avx2], "avx512": [*X86_FLAGS, *avx2, *avx512]}

KERNEL_SOURCES = [
    "csrc/cpu/cross_entropy_rows.cpp",  # the longest to compile come first
    "csrc/cpu/cross_entropy_inner_tiles.cpp",
    "csrc/cpu/cross_entropy_transposed_tiles.cpp",
    "csrc/cpu/binary_cross_entropy.cpp",
    "csrc/cpu/binary_cross_entropy_with_logits.cpp",
    "csrc/cpu/elementary_functions.cpp",
    "csrc/cpu/index_target.cpp",
    "csrc/cpu/nll_loss.cpp",
]
SOURCES = [
    "csrc/bindings.cpp",
    "csrc/cpu/capability.cpp",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / "ops").glob("*.cpp")),
]


class BuildWithCapabilities(BuildExtension):
    """Compiles the kernel sources once per instruction set and links all copies into the extension."""

    def build_extension(self, ext) -> None:
        for capability, flags in CAPABILITIES.items():
            objects = self.compiler.compile(
                KERNEL_SOURCES,
                # Not build_temp, which pip makes anew each time: an unchanged kernel is not compiled twice.
                output_dir=str(ROOT / "build" / "kernels" / capability),
                macros=[("FUSED_LOSSES_CAPABILITY", capability)],
                extra_postargs=[*COMPILE_FLAGS, *KERNEL_FLAGS, *flags],
                depends=sorted(str(path) for path in (ROOT / "csrc").rglob("*.h")),
            )
            ext.extra_objects += [os.path.abspath(path) for path in objects]
        super().build_extension(ext)


if sys.platform == "win32":
    raise SystemExit("fused_losses: the kernels need GCC or Clang; Windows is not supported")

setup(
    version=VERSION,
    ext_modules=[
        CppExtension(
            "fused_losses._C",
            SOURCES,
            include_dirs=[pybind11.get_include()],
            define_macros=[
                ("TORCH_TARGET_VERSION", f"{TORCH_TARGET:#x}"),
                ("FUSED_LOSSES_VERSION", f'"{VERSION}"'),
                ("FUSED_LOSSES_TORCH_VERSION", f'"{torch.__version__}"'),
            ],
            extra_compile_args=COMPILE_FLAGS,
        )
    ],
    cmdclass={"build_ext": BuildWithCapabilities},
)
