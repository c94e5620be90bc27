"""The smaller commands beside the grid: instruction sets, import time, and what the memory figure counts."""

from functools import partial

import pytest
import torch

import fused_losses
from benchmarks import capabilities, devices, linear_cross_entropy, row_terms, tokens
from benchmarks.cpu_device import CpuDevice
from benchmarks.import_time import import_seconds
from benchmarks.measure import Task
from benchmarks.memory import peak_extra_bytes
from benchmarks.token_peers import PeerStatistics
from fused_losses import _C
from fused_losses.functional import cross_entropy, token_statistics


@pytest.mark.slow
@pytest.mark.parametrize("cell", capabilities.calls())
def test_every_instruction_set_is_timed(cell, monkeypatch):
    monkeypatch.setattr(capabilities, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(capabilities, "MIN_ROUNDS", 2)
    call, numel = capabilities.calls()[cell]
    names = _C.available_cpu_capabilities()
    in_use = _C.cpu_capability()
    try:
        times = capabilities.nanoseconds_per_element(call, numel, names)
    finally:
        _C.set_cpu_capability(in_use)
    assert list(times) == names
    assert all(time > 0 for time in times.values())


@pytest.mark.slow
def test_the_import_is_timed():
    assert import_seconds() > 0


def test_memory_counts_a_gradient_that_the_pool_could_serve():
    logits = torch.randn(2048, 1024, requires_grad=True)
    target = torch.zeros(2048, dtype=torch.long)
    gradient_of = partial(torch.autograd.grad, inputs=logits)
    task = Task([lambda: gradient_of(fused_losses.functional.cross_entropy(logits, target))])
    limit = fused_losses.gradient_pool_limit()
    peak = peak_extra_bytes(task, CpuDevice())
    assert peak is not None
    assert 8 << 20 <= peak < 9 << 20
    assert fused_losses.gradient_pool_limit() == limit


def test_the_statistics_of_tokens_are_timed_beside_cross_entropy_and_torch(capsys):
    tokens.main(["--rows", "3", "--classes", "50", "--min-time", "0.01"])
    printed = capsys.readouterr().out
    assert "bfloat16" in printed and "forward + backward" in printed and "(1.00)" in printed


@pytest.mark.slow
def test_other_packages_statistics_stand_beside_ours_or_say_why_not(capsys, monkeypatch):
    def of_torch(logits, target):
        return PeerStatistics(logits.float().log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1))

    def missing():
        raise ImportError("it is not installed\nat all")

    arguments = ["--rows", "3", "--classes", "50", "--min-time", "0.01"]
    monkeypatch.setattr(tokens, "PEERS", {"present": lambda: of_torch, "missing": missing})
    tokens.main(arguments)
    printed = capsys.readouterr().out
    assert printed.count("without missing: ImportError: it is not installed\n") == 1 and "present" in printed
    monkeypatch.setattr(tokens, "PEERS", {"wrong": lambda: lambda *p: PeerStatistics(of_torch(*p).log_prob * 1.1)})
    with pytest.raises(AssertionError, match="not close"):
        tokens.main(arguments)


def test_the_eager_statistics_are_those_that_are_timed():
    logits, target = torch.randn(5, 40), torch.randint(40, (5,))
    for ours, eager in zip(token_statistics(logits, target), tokens.eager_statistics(logits, target), strict=True):
        torch.testing.assert_close(ours, eager)


def test_the_loss_of_a_linear_layer_is_measured_beside_torchs(capsys):
    linear_cross_entropy.main(["--rounds", "1", "--shape", "20x4x30/50", "--emulated"])
    printed = capsys.readouterr().out
    assert "20x4x30/50" in printed and "bfloat16" in printed and "products" in printed


@pytest.mark.slow
def test_other_packages_losses_of_a_linear_layer_stand_beside_ours_or_say_why_not(capsys, monkeypatch):
    def of_torch(input, weight, target):
        return torch.nn.functional.cross_entropy(input @ weight.t(), target)

    def missing():
        raise ImportError("it is not installed\nat all")

    monkeypatch.setattr(linear_cross_entropy, "PEERS", {"present": lambda: of_torch, "missing": missing})
    arguments = ["--rounds", "1", "--shape", "20x4x30/50", "--dtype", "float32", "--peers"]
    linear_cross_entropy.main(arguments)
    printed = capsys.readouterr().out
    assert "without missing: ImportError: it is not installed\n" in printed and "present" in printed
    monkeypatch.setattr(linear_cross_entropy, "PEERS", {"wrong": lambda: lambda *problem: of_torch(*problem) * 1.01})
    with pytest.raises(RuntimeError, match=r"wrong differs from torch, unfused in the loss by 0\.01"):
        linear_cross_entropy.main(arguments)


def test_a_package_whose_kernels_do_not_run_here_says_why(capsys, monkeypatch):
    def function(input, weight, target):
        raise RuntimeError("no kernel for this GPU\nat all")

    monkeypatch.setattr(linear_cross_entropy, "PEERS", {"one": lambda: function})
    linear_cross_entropy.main(["--rounds", "1", "--shape", "20x4x30", "--dtype", "float32", "--peers"])
    assert "without one: RuntimeError: no kernel for this GPU\n" in capsys.readouterr().out


@pytest.mark.parametrize("command", [tokens, row_terms, linear_cross_entropy])
def test_a_missing_gpu_is_an_error_that_says_so(command, capsys, monkeypatch):
    monkeypatch.setattr(devices, "why_unusable", lambda: "there is no GPU")
    with pytest.raises(SystemExit, match="2"):
        command.main(["--device", "cuda"])
    assert "there is no GPU" in capsys.readouterr().err


def test_the_options_beyond_torchs_are_timed_beside_the_plain_loss_and_their_composition(capsys):
    row_terms.main(["--rows", "3", "--classes", "50", "--min-time", "0.01"])
    printed = capsys.readouterr().out
    assert "softcap" in printed and "these by torch" in printed and printed.count("bfloat16") == 2
    logits, target = torch.randn(3, 50), torch.tensor([4, 9, 2])
    ours = cross_entropy(logits, target, softcap=row_terms.SOFTCAP, lse_square_scale=row_terms.Z_LOSS)
    torch.testing.assert_close(ours, row_terms.composition(logits, target))
