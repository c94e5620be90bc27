"""What only a GPU can show: streams, graphs, other devices, that the host never waits. Skipped where torch sees none.

The parity tests are parametrised over devices and run on a GPU by themselves.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from losses import CROSS_ENTROPY, LOSSES, sample

import fused_losses

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU: nothing of this file was run"),
    pytest.mark.skipif(not fused_losses.is_cuda_available(), reason="the CUDA kernels were not built"),
]

SHAPES = [(64, 10), (256, 1000), (4, 150000), (8, 21, 33, 40)]
DTYPES = [torch.float32, torch.bfloat16]


def loss_and_gradient(loss, input, target, reduction="mean"):
    leaf = input.detach().requires_grad_()
    result = loss.ours(leaf, target, reduction=reduction)
    (gradient,) = torch.autograd.grad(result, leaf, torch.ones_like(result))
    return result.detach(), gradient


def assert_same_bits(ours, expected):
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def forbid_synchronization():
    """A function that makes every wait of the host an error from then on."""
    torch.cuda.synchronize()
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_host_never_waits(loss, dtype, reduction, forbid_synchronization):
    input, target = sample(loss, (64, 100), dtype, "cuda")
    forbid_synchronization()
    loss_and_gradient(loss, input, target, reduction)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_every_run_gives_the_same_bits(loss, dtype, shape):
    input, target = sample(loss, shape, dtype, "cuda")
    expected = loss_and_gradient(loss, input, target)
    for _ in range(20):
        assert_same_bits(loss_and_gradient(loss, input, target), expected)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_kernels_run_on_the_current_stream(loss):
    """The input is written on the stream just before: on another one the kernels would read what was there."""
    input, target = sample(loss, (512, 1000), device="cuda")
    expected = loss_and_gradient(loss, input, target)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.full_like(input, 0.5)
        torch.cuda._sleep(50_000_000)
        late.copy_(input)
        result = loss_and_gradient(loss, late, target)
    stream.synchronize()
    assert_same_bits(result, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_another_device_than_the_current_one(loss):
    input, target = sample(loss, (512, 1000), device="cuda:0")
    expected = loss_and_gradient(loss, input, target)
    with torch.cuda.device(0):
        result = loss_and_gradient(loss, input.to("cuda:1"), target.to("cuda:1"))
    assert all(tensor.device == torch.device("cuda:1") for tensor in result)
    assert_same_bits([tensor.to("cuda:0") for tensor in result], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_captured_graph_computes_the_next_inputs(loss, dtype):
    input, target = sample(loss, (256, 1000), dtype, "cuda")
    other_input, other_target = sample(loss, (256, 1000), dtype, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        loss_and_gradient(loss, input, target)  # as torch asks for: one run before the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loss_and_gradient(loss, input, target)
    input.copy_(other_input)
    target.copy_(other_target)
    graph.replay()
    assert_same_bits(captured, loss_and_gradient(loss, other_input, other_target))


def test_peak_memory_is_the_gradient():
    logits, target = sample(CROSS_ENTROPY, (4096, 32000), torch.bfloat16, "cuda")
    logits.requires_grad_()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    CROSS_ENTROPY.ours(logits, target).backward()
    extra = torch.cuda.max_memory_allocated() - before
    assert extra <= logits.nbytes + 2**20


@pytest.mark.parametrize("index", [7, -1])
def test_a_target_out_of_range_stops_the_kernel(index):
    """In a process of its own: the device is of no use after it."""
    code = (
        "import torch, fused_losses.functional as F\n"
        f"F.cross_entropy(torch.randn(3, 7, device='cuda'), torch.tensor([0, {index}, 1], device='cuda'))\n"
        "torch.cuda.synchronize()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "device-side assert triggered" in result.stderr
