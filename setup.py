"""Builds fused_losses._C: operators on torch's stable ABI, CPU kernels compiled once per instruction set.

Where torch is a CUDA build and nvcc is found, fused_losses._cuda<major version> is built too, a library of its own:
    FUSED_LOSSES_CUDA=0     leave it out
    FUSED_LOSSES_CUDA=1     fail where it cannot be built
    TORCH_CUDA_ARCH_LIST    the architectures by number, as for every extension of torch: "8.0 9.0+PTX"

As for every extension of torch, too: CXX names the compiler, MAX_JOBS how many of them run at a time.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension, get_cxx_compiler

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
    "csrc/cpu/logit_units.cpp",
    "csrc/cpu/nll_loss.cpp",
    "csrc/cpu/sigmoid_focal_loss.cpp",
    "csrc/cpu/token_statistics.cpp",
]


def sources(folder: str, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(pattern))


SOURCES = [
    "csrc/bindings.cpp",
    "csrc/cpu/capability.cpp",
    "csrc/cpu/transformed_cross_entropy.cpp",
    *sources("ops", "*.cpp"),
]

# What an operator needs on every device.
PROBLEM_SOURCES = [
    *sources("ops", "*_problem.cpp"),
    "csrc/ops/class_layout.cpp",
    "csrc/ops/index_target.cpp",
    "csrc/ops/tensors.cpp",
]

MACROS = [("TORCH_TARGET_VERSION", f"{TORCH_TARGET:#x}")]


def nvcc_version() -> tuple[int, int] | None:
    """The version of the nvcc in CUDA_HOME, which torch finds by the variable, by PATH or in its usual place."""
    try:
        output = subprocess.run(
            [os.path.join(CUDA_HOME or "", "bin", "nvcc"), "--version"], capture_output=True, text=True
        )
    except OSError:
        return None
    match = re.search(r"release (\d+)\.(\d+)", output.stdout)
    return (int(match[1]), int(match[2])) if match else None


def cuda_library_dirs() -> list[str]:
    """Where nvcc's own libraries are, which it knows also where PATH has a script in its place."""
    nvcc = os.path.join(CUDA_HOME or "", "bin", "nvcc")
    output = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    match = re.search(r"TOP=(.+)", output.stderr)
    folders = [os.path.join(match[1].strip(), name) for name in ("lib64", "lib")] if match else []
    return [folder for folder in folders if os.path.isdir(folder)]


def architecture_flags(nvcc: tuple[int, int]) -> list[str]:
    """What to compile for: TORCH_CUDA_ARCH_LIST, or Ampere to Blackwell as far as this nvcc knows them."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if not listed:
        known_since = {"8.0": (11, 0), "8.6": (11, 1), "9.0": (11, 8), "10.0": (12, 8), "12.0": (12, 8)}
        listed = [architecture for architecture, version in known_since.items() if nvcc >= version]
        listed[-1] += "+PTX"
    flags = []
    for entry in listed:
        number = entry.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if entry.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def cuda_extensions() -> list[CUDAExtension]:
    """The CUDA library, or nothing and a line that says why."""
    wanted = os.environ.get("FUSED_LOSSES_CUDA", "")
    if wanted == "0":
        return []
    nvcc = nvcc_version()
    if torch.version.cuda is None:
        obstacle = "this torch is not a CUDA build"
    elif nvcc is None:
        obstacle = "there is no nvcc on PATH or in CUDA_HOME"
    elif nvcc[0] != int(torch.version.cuda.split(".")[0]):
        obstacle = f"nvcc is of CUDA {nvcc[0]}.{nvcc[1]} and torch of CUDA {torch.version.cuda}"
    else:
        flags = architecture_flags(nvcc)
        print(f"fused_losses: CUDA kernels are built with nvcc {nvcc[0]}.{nvcc[1]}: {' '.join(flags)}")
        return [
            CUDAExtension(
                f"fused_losses._cuda{nvcc[0]}",
                [*sources("cuda", "*.cu"), *sources("ops/cuda", "*.cpp"), *PROBLEM_SOURCES],
                define_macros=[*MACROS, ("USE_CUDA", None)],
                library_dirs=cuda_library_dirs(),
                extra_compile_args={
                    "cxx": COMPILE_FLAGS,
                    "nvcc": [
                        "-std=c++20",
                        "-O3",
                        "-Xcompiler=-fvisibility=hidden",
                        "-Xfatbin=-compress-all",  # an eighth of the library's size
                        "--threads=2",
                        *flags,
                    ],
                },
            )
        ]
    if wanted == "1":
        raise SystemExit(f"fused_losses: FUSED_LOSSES_CUDA=1, but {obstacle}")
    print(f"fused_losses: built for the CPU alone: {obstacle}")
    return []


class BuildWithCapabilities(BuildExtension):
    """Compiles the kernel sources once per instruction set and links all copies into the extension."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # Without ninja a change of a header or a kernel would not be linked: setuptools looks at the sources it knows.
        self.force = True
        # Not a folder that pip makes anew each time: what is unchanged is not compiled twice.
        libc = "".join(platform.libc_ver())
        self.build_temp = str(ROOT / "build" / f"temp.{sys.implementation.cache_tag}-{libc}")

    def build_extensions(self) -> None:
        compiler = get_cxx_compiler()  # what ninja is told to call
        if self.use_ninja and shutil.which(shlex.split(compiler)[0]) is None:
            raise SystemExit(
                f"fused_losses: there is no C++ compiler {compiler}: install GCC 12 (Debian: apt install g++) or Clang "
                "(macOS: xcode-select --install), or name one by CXX"
            )
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        if ext.name == "fused_losses._C":
            self.add_kernels(ext)
        super().build_extension(ext)

    def add_kernels(self, ext: Extension) -> None:
        for capability, flags in CAPABILITIES.items():
            objects = self.compiler.compile(
                KERNEL_SOURCES,
                output_dir=str(ROOT / "build" / "kernels" / capability),
                macros=[("FUSED_LOSSES_CAPABILITY", capability)],
                extra_postargs=[*COMPILE_FLAGS, *KERNEL_FLAGS, *flags],
            )
            ext.extra_objects += [os.path.abspath(path) for path in objects]


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
                *MACROS,
                ("FUSED_LOSSES_VERSION", f'"{VERSION}"'),
                ("FUSED_LOSSES_TORCH_VERSION", f'"{torch.__version__}"'),
            ],
            extra_compile_args=COMPILE_FLAGS,
        ),
        *cuda_extensions(),
    ],
    cmdclass={"build_ext": BuildWithCapabilities},
)
