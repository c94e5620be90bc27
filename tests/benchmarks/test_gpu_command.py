"""The benchmark's command and its description of the machine on a GPU; the last test needs one."""

import subprocess
from types import SimpleNamespace

import pytest
import torch
from gpu_stand_in import CACHE_BYTES, SMALL

import fused_losses
from benchmarks import __main__ as command
from benchmarks import cuda_device, worker
from benchmarks.cases import GPU_GRID, GRID, QUICK_GRID, Case, find, select
from benchmarks.cuda_device import split_by_free_memory, why_unusable
from benchmarks.gpu_machine import describe_gpu
from benchmarks.request import Request, requests
from benchmarks.results import PASSES, PEER_NAMES, gigabytes_per_second


def test_a_gpu_gets_the_whole_grid_and_large_vocabularies():
    assert GPU_GRID[: len(GRID)] == GRID
    more = [case.name for case in select(device="cuda") if case not in select()]
    shapes = ("8192x50257", "4096x128256", "32768x32000")
    assert more == [f"cross_entropy-{shape}-bfloat16" for shape in shapes]
    assert [find(name).name for name in more] == more
    required = {(8192, 1000), (65536, 10), (8, 21, 256, 256), (20_000_000,)}
    assert required <= {case.shape for case in GPU_GRID if case.dtype == "bfloat16"}


def test_cases_that_do_not_fit_into_free_memory_are_left_out(monkeypatch):
    small, large = Case("cross_entropy", (1000, 1000), "bfloat16"), Case("cross_entropy", (1000, 1000))
    assert (small.gpu_bytes, large.gpu_bytes) == (20_000_000, 40_000_000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20_000_000, 80_000_000_000))
    assert split_by_free_memory([large, small]) == ([small], [large])


def test_no_gpu_and_no_kernels_are_two_reasons(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in why_unusable()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "finds no GPU or no driver" in why_unusable()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fused_losses, "is_cuda_available", lambda: False)
    assert "fused_losses has no CUDA kernels loaded" in why_unusable()
    monkeypatch.setattr(fused_losses, "is_cuda_available", lambda: True)
    assert why_unusable() is None


def test_the_command_refuses_cuda_with_status_2_and_the_reason(monkeypatch, capsys):
    monkeypatch.setattr(cuda_device, "why_unusable", lambda: "there is none")
    with pytest.raises(SystemExit) as ended:
        command.main(["--device", "cuda"])
    assert ended.value.code == 2
    assert "--device cuda: there is none" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "with_peers"), [([], True), (["--no-peers"], False)])
def test_the_command_on_cuda_asks_for_peers_and_keeps_its_results_apart(
    flags, with_peers, monkeypatch, tmp_path, capsys
):
    asked = []

    def take_requests(requests, console, on_result, on_failure, run):
        asked.extend(requests)

    monkeypatch.setattr(cuda_device, "why_unusable", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**9, 10**10))
    monkeypatch.setattr("benchmarks.machine.describe", lambda device: {"load_average_at_start": 0.0, "cores": 1})
    monkeypatch.setattr("benchmarks.runner.run_all", take_requests)
    arguments = ["--device", "cuda", "--filter", "32000-b", "--filter", "x10-", "--output", str(tmp_path), *flags]
    assert command.main(arguments) == 0
    assert {(request.device, request.allocator, request.with_peers) for request in asked} == {
        ("cuda", "default", with_peers)
    }
    # 21 GB and 2.6 GB are not free.
    assert [request.case for request in asked] == [
        "cross_entropy-65536x10-float32", "cross_entropy-65536x10-bfloat16", "cross_entropy-32x10-float32"
    ]  # fmt: skip
    assert "left out: cross_entropy-32768x32000-bfloat16 needs about 21.0 GB" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["cuda-filtered.json"]


def test_a_request_for_the_cpu_has_no_peers():
    made = requests(
        [SMALL], device="cpu", allocators=["default"], threads=[None], with_compile=False, with_peers=False, quick=True,
        min_seconds=0.0,
    )  # fmt: skip
    assert not made[0].with_peers


def test_the_gpu_is_described_by_torch_and_nvidia_smi(gpu, monkeypatch):
    asked = []

    def nvidia_smi(command, **_):
        asked.append(command)
        return SimpleNamespace(returncode=0, stdout="600.1, 345 MHz, 405 MHz, 1980 MHz, 2619 MHz, 700.00 W\n")

    monkeypatch.setattr(subprocess, "run", nvidia_smi)
    described = describe_gpu()
    assert "--id=GPU-1234-abcd" in asked[0]
    assert described["driver_version"] == "600.1"
    assert described["clocks.max.memory"] == "2619 MHz"
    assert described["second_level_cache_bytes"] == CACHE_BYTES
    assert described["compute_capability"] == "9.0"


@pytest.mark.parametrize("problem", ["not installed", "fails"])
def test_a_machine_without_nvidia_smi_is_described_without_clocks(gpu, monkeypatch, problem):
    def nvidia_smi(command, **_):
        if problem == "not installed":
            raise FileNotFoundError(command[0])
        return SimpleNamespace(returncode=9, stdout="No devices were found")

    monkeypatch.setattr(subprocess, "run", nvidia_smi)
    described = describe_gpu()
    assert described["driver_version"] is None
    assert described["multiprocessors"] == 132


@pytest.mark.skipif(why_unusable() is not None, reason=f"no GPU to measure on: {why_unusable()}")
@pytest.mark.parametrize("case", QUICK_GRID, ids=lambda case: case.name)
def test_a_small_case_runs_on_the_gpu_that_is_here(case):
    request = Request(
        case.name,
        "cuda",
        "default",
        None,
        with_compile=False,
        quick=True,
        min_seconds=0.0,
        min_rounds=2,
        with_peers=True,
    )
    result = worker.run_case(request)
    for which in PASSES:
        assert gigabytes_per_second(result, "floor", which) > 0
        assert gigabytes_per_second(result, "fused", which) > 0
    assert result["contenders"]["fused"]["peak_extra_bytes"]["forward_backward"] >= result["logits_bytes"]
    assert len(result["absent"]) + len(result["contenders"]) >= 2 + len(PEER_NAMES)
