"""What is particular to the CUDA operators, shown under emulation: assertions, scaled gradients, far offsets."""

from __future__ import annotations

import emulated_cuda
import pytest
import torch
from compilation import emulation_unavailable
from losses import BINARY_CROSS_ENTROPY, BINARY_CROSS_ENTROPY_WITH_LOGITS, CROSS_ENTROPY, NLL_LOSS, sample
from parity import run

from fused_losses import _ops
from fused_losses.functional import token_statistics


@pytest.fixture(autouse=True)
def emulated(request, monkeypatch):
    if emulation_unavailable() is not None:
        pytest.skip(f"no emulation: {emulation_unavailable()}")
    emulated_cuda.use(monkeypatch, request.node.nodeid)


@pytest.mark.parametrize("index", [5, -1, 2**40, -(2**40)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(7, 5), (3, 5, 4)], ids=str)
@pytest.mark.parametrize("loss", [CROSS_ENTROPY, NLL_LOSS], ids=repr)
def test_a_target_out_of_range_stops_the_kernel(loss, shape, reduction, index):
    """It is never followed; the next call is as good as any."""
    input, target = sample(loss, shape)
    bad = target.clone()
    bad.view(-1)[2] = index
    with pytest.raises(RuntimeError, match="device-side assert triggered"):
        run(loss.ours, input, bad, reduction=reduction)
    assert run(loss.ours, input, target, reduction=reduction).gradient.isfinite().all()


@pytest.mark.parametrize("place", ["input", "target"])
@pytest.mark.parametrize("value", [-1e-6, 1.0001, float("nan")])
def test_a_probability_out_of_range_stops_the_kernel(place, value):
    input, target = sample(BINARY_CROSS_ENTROPY, (35,))
    (input if place == "input" else target)[33] = value
    with pytest.raises(RuntimeError, match="device-side assert triggered"):
        BINARY_CROSS_ENTROPY.ours(input, target)


def count_calls(monkeypatch, name):
    calls = []
    original = getattr(_ops, name)

    def counting(*arguments):
        calls.append(name)
        return original(*arguments)

    monkeypatch.setattr(_ops, name, counting)
    return calls


@pytest.mark.parametrize("grad_output", [1.0, 0.375, 4096.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", [CROSS_ENTROPY, BINARY_CROSS_ENTROPY, BINARY_CROSS_ENTROPY_WITH_LOGITS], ids=repr)
def test_the_device_scales_the_gradient(loss, dtype, grad_output, monkeypatch):
    """It computes the gradient anew, unless that is the expected one: rounded once, the bits of a plain backward."""
    rescaled = count_calls(monkeypatch, f"{loss.name}_rescale_gradient")
    input, target = sample(loss, (9, 40), dtype)
    once = run(loss.ours, input.double(), target.double() if target.is_floating_point() else target)
    ours = run(loss.ours, input, target, torch.tensor(grad_output))
    assert len(rescaled) == 2
    torch.testing.assert_close(ours.gradient, (once.gradient * grad_output).to(dtype))


def test_a_float16_gradient_does_not_underflow_before_it_is_scaled():
    """Loss scaling: 1 / 4 of a probability of 1e-8 is no float16 number, 65536 times that is."""
    logits = torch.zeros(4, 5000, dtype=torch.float16)
    logits[:, 0] = 17.0
    leaf = logits.requires_grad_()
    loss = CROSS_ENTROPY.ours(leaf, torch.zeros(4, dtype=torch.int64), reduction="mean")
    (gradient,) = torch.autograd.grad(loss, leaf, torch.tensor(2.0**15, dtype=torch.float16))
    expected = torch.autograd.grad(
        CROSS_ENTROPY.torchs(in_float64 := logits.detach().double().requires_grad_(), torch.zeros(4).long()), in_float64
    )[0]
    torch.testing.assert_close(gradient[:, 1:], (expected[:, 1:] * 2.0**15).half(), rtol=2e-3, atol=0)
    assert (gradient[:, 1:] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_kept_graph_keeps_the_gradient(dtype):
    logits, target = sample(CROSS_ENTROPY, (9, 40), dtype)
    leaf = logits.requires_grad_()
    loss = CROSS_ENTROPY.ours(leaf, target)
    (first,) = torch.autograd.grad(loss, leaf, torch.tensor(3.0, dtype=dtype), retain_graph=True)
    (second,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(first, 3 * second)


def test_rows_two_to_the_31_elements_apart():
    """Of the 8 GiB that the logits span only two rows exist in memory."""
    distance = 2**31 + 3
    memory = torch.empty(distance + 16, dtype=torch.float32)
    logits = memory.as_strided((2, 10), (distance, 1))
    logits.copy_(torch.randn(2, 10))
    target = torch.tensor([3, 9])
    expected = run(CROSS_ENTROPY.torchs, logits.clone(), target)
    ours = run(CROSS_ENTROPY.ours, logits, target)
    torch.testing.assert_close(ours.loss, expected.loss)
    torch.testing.assert_close(ours.gradient, expected.gradient)


@pytest.mark.parametrize("index", [5, -1, 2**40])
def test_a_token_out_of_range_stops_the_kernel(index):
    logits, target = torch.randn(7, 5), torch.randint(5, (7,))
    bad = target.clone()
    bad[2] = index
    with pytest.raises(RuntimeError, match="device-side assert triggered"):
        token_statistics(logits, bad)
    assert token_statistics(logits, target).log_prob.isfinite().all()


@pytest.mark.parametrize("num_classes", [40, 3000])
def test_statistics_of_a_token_alone_and_in_a_batch(num_classes):
    """Of rows that begin aligned, for a warp and for a block: the same bits."""
    logits, target = torch.randn(9, num_classes), torch.randint(num_classes, (9,))
    together = token_statistics(logits, target)
    for row in (0, 4, 8):
        alone = token_statistics(logits[row : row + 1], target[row : row + 1])
        for one, all_of_them in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_of_them[row])


# A row's exponentials are 2 to the power of a rounded product: the rounding must not be seen, nor an overflow of it.
@pytest.mark.parametrize("magnitude", [0, 100, -3000, 60000, 2.0**17, -3e38, 3e38])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(5, 21), (3, 1000), (2, 17000), (2, 21, 5), (2, 150, 8)], ids=str)  # every kernel
def test_16_bit_logits_of_any_magnitude(shape, dtype, magnitude):
    if abs(magnitude) > torch.finfo(dtype).max:
        pytest.skip(f"{magnitude} is beyond {dtype}")
    logits = (3 * torch.randn(shape, dtype=torch.float64) + magnitude).to(dtype).requires_grad_()
    target = torch.randint(shape[1], shape[:1] + shape[2:])
    exact = logits.detach().double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, target)
    expected.backward()
    with torch.autocast("cpu", torch.bfloat16):  # float32 losses
        loss = CROSS_ENTROPY.ours(logits, target)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=torch.finfo(dtype).eps, atol=1e-7)
