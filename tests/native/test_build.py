"""What was built: its description, the symbols it needs, what importing it costs."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import fused_losses
import fused_losses._C as native
from fused_losses import functional as F


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def test_build_info_names_version_compiler_and_capabilities() -> None:
    info = native.build_info()
    assert info["version"] == fused_losses.__version__
    assert info["cpu_capabilities"] == native.available_cpu_capabilities()
    assert info["cxx_standard"] >= 202002
    assert info["torch_built_with"].split(".")[:1] == ["2"]
    assert info["compiler"]


def test_extension_needs_no_library_of_a_particular_torch() -> None:
    """Built on the stable ABI: only C functions of torch, no symbol of its C++ interface."""
    listing = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", "--demangle", native.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    needed = [line.split(maxsplit=1)[1] for line in listing.splitlines()]
    assert not [name for name in needed if name.startswith(("c10::", "at::", "torch::"))]
    assert any(name.startswith("aoti_torch_") for name in needed)


def test_import_adds_little_to_torchs() -> None:
    """Not timed: what makes an import slow is what it pulls in."""
    code = (
        "import sys, torch; before = set(sys.modules); import fused_losses; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    assert set(run_python(code).stdout.split()) <= {"fused_losses", "torch"}


def test_threads_are_torchs_own() -> None:
    """No second thread pool: with one torch thread a large loss runs on the calling thread alone."""
    code = (
        "import os, torch; torch.set_num_threads(1); from fused_losses import functional as F; "
        "F.cross_entropy(torch.randn(4096, 1000), torch.zeros(4096, dtype=torch.long)); "
        "print(len(os.listdir('/proc/self/task')))"
    )
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("no /proc on this platform")
    assert run_python(code, OMP_NUM_THREADS="1").stdout.split() == ["1"]
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize("capability", native.available_cpu_capabilities())
def test_kernels_leave_the_x87_unit_usable(capability: str) -> None:
    """MMX instructions would not: the next long double would be NaN. Eight values, as many as it has registers."""
    before = native.cpu_capability()
    native.set_cpu_capability(capability)
    try:
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            for shape in ((300, 7), (40, 100), (2, 7, 300)):
                logits = torch.randn(shape).to(dtype).requires_grad_()
                target = torch.zeros(shape[:1] + shape[2:], dtype=torch.long)
                weight = torch.ones(shape[1], dtype=dtype)
                F.cross_entropy(logits, target, weight, label_smoothing=0.1).backward()
                F.nll_loss(logits, target, weight).backward()
                F.binary_cross_entropy(logits.sigmoid().detach(), logits.sigmoid().detach(), weight[:1])
                F.binary_cross_entropy_with_logits(logits, logits.sigmoid().detach(), weight[:1]).backward()
                one = np.full(8, 1, dtype=np.longdouble)
                assert np.isfinite(np.exp(one)).all()
    finally:
        native.set_cpu_capability(before)
