"""Fixtures and settings that every test shares: the devices at hand, fixed seeds, Hypothesis without randomness."""

import gc
import os
import sys
from pathlib import Path

# For the package `benchmarks`, which some tests are about. Last: an installed fused_losses comes before this folder's.
sys.path.append(str(Path(__file__).parents[1]))

# OpenMP's threads sleep while they wait. By default they spin, which on a machine that is busy with other work makes a
# small tensor wait for the scheduler: the suite then takes five times as long. OpenMP reads this when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# torch.compile's cache on disk does not know what an operator of ours gave when it was filled.
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
# A worker of pytest-xdist has a core for itself. A test that is about threads sets their number.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import emulated_cuda
import pytest
import torch
from compilation import emulation_unavailable
from hypothesis import settings
from quick_selection import (  # noqa: F401
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)

import fused_losses
from fused_losses.autograd import scale_history

# "emulated": tensors of the CPU, the CUDA kernels run on the host. See emulated_cuda.py. The variable leaves some out,
# for a GPU that is lent by the minute: FUSED_LOSSES_TEST_DEVICES=cuda.
AT_HAND = ["cpu", "emulated", "cuda"] if torch.cuda.is_available() else ["cpu", "emulated"]
DEVICES = os.environ.get("FUSED_LOSSES_TEST_DEVICES", "").split() or AT_HAND

settings.register_profile("reproducible", derandomize=True, deadline=None, print_blob=True, max_examples=250)
settings.register_profile("quick", settings.get_profile("reproducible"), max_examples=50)


def pytest_configure(config):
    settings.load_profile("quick" if config.getoption("--quick") else "reproducible")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """What collecting left, thousands of tests, is no work for the garbage collector: half a second each time."""
    gc.collect()
    gc.freeze()


def pytest_report_header(config):
    emulation = emulation_unavailable()
    lines = [
        "fused_losses: the CUDA kernels run under emulation"
        if emulation is None
        else f"fused_losses: the emulated CUDA tests are SKIPPED, {emulation}"
    ]
    if DEVICES != AT_HAND:
        lines.append(f"fused_losses: FUSED_LOSSES_TEST_DEVICES leaves only tests of the devices {DEVICES}")
    if not torch.cuda.is_available():
        lines.append("fused_losses: the tests on a GPU are SKIPPED, torch sees none here")
    elif not fused_losses.is_cuda_available():
        lines.append("fused_losses: on this GPU torch's own losses are tested, the CUDA kernels were not built")
    else:
        lines.append(f"fused_losses: the tests on a GPU run on {torch.cuda.get_device_name()}")
    if config.getoption("--quick"):
        lines.append(
            "fused_losses: a QUICK run, of large grids a part and nothing slow; `make test-all` runs everything"
        )
    return lines


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """What a test passes on as `device`; with "emulated" the CUDA kernels compute on CPU tensors."""
    if request.param != "emulated":
        return request.param
    if emulation_unavailable() is not None:
        pytest.skip(f"no emulation: {emulation_unavailable()}")
    if request.node.get_closest_marker("slow") is not None:
        pytest.skip("gigabytes under emulation would take hours")
    emulated_cuda.use(monkeypatch, request.node.nodeid)
    return "cpu"


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(20240229)


@pytest.fixture(autouse=True)
def no_scales_remembered():
    """By what a test's losses were scaled is no other test's business."""
    scale_history._expectations.clear()


@pytest.fixture
def restore_num_threads():
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)
