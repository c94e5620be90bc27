"""The CUDA kernels: a library of their own beside ``_C``, loaded under a torch that was built for the same CUDA.

Its name ends in the major version of CUDA that it was built with, ``_cuda13``: a library of one major version does not
load in a process that holds the runtime of another. Without it tensors on a GPU are left to torch's own functions.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch

__all__ = ["is_cuda_available"]


def _built_libraries() -> dict[int, Path]:
    """The libraries beside this file by the major version of CUDA that they were built with."""
    matches = ((re.match(r"_cuda(\d+)\.", path.name), path) for path in Path(__file__).parent.glob("_cuda*.so"))
    return {int(match[1]): path for match, path in matches if match}


def _load(cuda_version: str | None, libraries: dict[int, Path]) -> bool:
    """Load the library for this version of CUDA; without one for it a warning where there are others."""
    if cuda_version is None or not libraries:
        return False
    path = libraries.get(int(cuda_version.split(".")[0]))
    if path is None:
        built_with = ", ".join(str(major) for major in sorted(libraries))
        reason = f"its kernels were built with CUDA {built_with} and this torch with CUDA {cuda_version}"
    else:
        try:
            torch.ops.load_library(path)  # type: ignore[no-untyped-call]
            return True
        except OSError as error:
            reason = str(error)
    warnings.warn(
        f"fused_losses computes nothing on GPUs, torch's own losses do: {reason}. "
        "Install fused_losses again in this environment to build them.",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


_is_loaded = _load(torch.version.cuda, _built_libraries() if torch.version.cuda is not None else {})


def is_cuda_available() -> bool:
    """Whether the CUDA kernels are loaded. Without them tensors on a GPU are left to torch's own functions."""
    return _is_loaded
