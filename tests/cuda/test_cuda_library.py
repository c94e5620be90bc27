"""The CUDA library beside _C: when it is built, when it is loaded, what it registers."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from losses import LOSSES, sample
from torch._subclasses import FakeTensorMode

import fused_losses
from fused_losses import _cuda, _ops, routing

ROOT = Path(__file__).parents[2]


def test_a_torch_without_cuda_loads_nothing_and_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not _cuda._load(None, {13: Path("missing.so")})
        assert not _cuda._load("13.0", {})


def test_another_major_version_of_cuda_is_named_in_a_warning():
    with pytest.warns(RuntimeWarning, match=r"built with CUDA 12 and this torch with CUDA 13\.0"):
        assert not _cuda._load("13.0", {12: Path("missing.so")})


def test_a_library_that_does_not_load_is_a_warning_with_the_reason(tmp_path):
    library = tmp_path / "_cuda13.so"
    library.write_bytes(b"no library")
    with pytest.warns(RuntimeWarning, match="_cuda13.so"):
        assert not _cuda._load("13.0", {13: library})


def test_the_library_is_loaded_under_a_torch_of_its_cuda():
    built = _cuda._built_libraries()
    is_wanted = torch.version.cuda is not None and int(torch.version.cuda.split(".")[0]) in built
    assert fused_losses.is_cuda_available() == is_wanted


@pytest.mark.skipif(not fused_losses.is_cuda_available(), reason="the CUDA kernels are not loaded under this torch")
def test_every_operator_has_a_cuda_kernel():
    operators = [value for value in vars(_ops).values() if isinstance(value, torch._ops.OpOverload)]
    names = {operator.name() for operator in operators} - {"fused_losses::elementary_function"}
    names = {name for name in names if "prepared" not in name}  # of the CPU alone: graphs that prepare the gradient
    assert len(names) == 26
    missing = [name for name in names if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")]
    assert not missing


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_operators_trace_on_a_device_that_is_not_there(loss):
    """The fake kernels serve every device: a graph of GPU tensors can be traced on any machine."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        input = torch.empty(6, 5, device="cuda")
        target = torch.empty(6, dtype=torch.int64, device="cuda") if loss.by_class else torch.empty_like(input)
        options = {
            "cross_entropy": (None, 0, -100, 0.0, False),
            "nll_loss": (None, 0, -100, False),
            "binary_cross_entropy": (None, 0),
            "binary_cross_entropy_with_logits": (None, None, 0),
        }[loss.name]
        result = getattr(_ops, f"{loss.name}_forward")(input, target, *options)
    assert result.device.type == "cuda"
    assert result.shape == ((6,) if loss.by_class else (6, 5))


def test_without_the_library_tensors_of_a_gpu_are_left_to_torch(monkeypatch):
    class OnGPU:  # the routing asks for nothing else before it decides
        is_cpu, is_cuda, layout, is_nested = False, True, torch.strided, False

    monkeypatch.setattr(routing, "_PLAIN_TYPES", frozenset({OnGPU}))
    monkeypatch.setattr(routing, "_HAS_CUDA", False)
    assert not routing.is_served(OnGPU())
    monkeypatch.setattr(routing, "_HAS_CUDA", True)
    assert routing.is_served(OnGPU())


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a CUDA build")
@pytest.mark.slow
def test_the_build_says_why_it_has_no_cuda():
    def setup(**environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "setup.py", "--name"]
        environment = {**os.environ, **environment}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    forced = setup(FUSED_LOSSES_CUDA="1")
    assert forced.returncode != 0
    assert "FUSED_LOSSES_CUDA=1, but this torch is not a CUDA build" in forced.stderr
    assert "built for the CPU alone: this torch is not a CUDA build" in setup().stdout
    assert "built for" not in setup(FUSED_LOSSES_CUDA="0").stdout


def test_a_gpu_that_is_not_there_is_torchs_error():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    input, _ = sample(LOSSES[0])
    with pytest.raises((RuntimeError, AssertionError), match=r"NVIDIA|CUDA"):
        input.cuda()
