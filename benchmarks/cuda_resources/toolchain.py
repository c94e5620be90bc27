"""Finds nvcc, a demangler and a disassembler."""

import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# Where the PyPI packages nvidia-cuda-nvdisasm and triton put their programs.
PACKAGE_FOLDERS = ("nvidia/cu*/bin", "triton/backends/nvidia/bin")


@dataclass(frozen=True)
class Toolchain:
    nvcc: str
    version: str
    demangler: str
    disassembler: str | None  # nvdisasm


class MissingToolError(RuntimeError):
    """A program without which nothing can be said."""


def find_toolchain() -> Toolchain:
    nvcc = find_program("nvcc")
    if nvcc is None:
        raise MissingToolError("nvcc is neither in CUDA_HOME/bin nor on PATH")
    demangler = find_program("cu++filt") or find_program("c++filt") or find_program("llvm-cxxfilt")
    if demangler is None:
        raise MissingToolError("neither cu++filt nor c++filt is on PATH")
    return Toolchain(nvcc, nvcc_version(nvcc), demangler, find_program("nvdisasm"))


def find_program(name: str) -> str | None:
    """In CUDA_HOME or CUDA_PATH, on PATH, in this environment's packages, in that order."""
    homes = [os.environ[variable] for variable in ("CUDA_HOME", "CUDA_PATH") if variable in os.environ]
    packages = Path(sysconfig.get_path("purelib"))
    folders = [str(folder) for pattern in PACKAGE_FOLDERS for folder in sorted(packages.glob(pattern), reverse=True)]
    search_path = [*(f"{home}/bin" for home in homes), os.environ.get("PATH", os.defpath), *folders]
    return shutil.which(name, path=os.pathsep.join(search_path))


def nvcc_version(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    match = re.search(r"V(\d+\.\d+\.\d+)", text)
    if match is None:
        raise MissingToolError(f"{nvcc} --version says no version: {text!r}")
    return match[1]
