"""A loss that is scaled before its backward: what earlier steps asked for decides the way, never the bits."""

import pytest
import torch
from losses import BINARY_CROSS_ENTROPY_WITH_LOGITS, CROSS_ENTROPY, FLOAT_DTYPES, LOSSES, sample
from torch.profiler import ProfilerActivity, profile

from fused_losses.autograd import scale_history
from fused_losses.autograd.scale_history import Expectation

# Long rows, rows in batches, few classes, a strided class axis, and one that is always prepared.
SHAPES = [(5, 30_000), (90, 1000), (8000, 10), (2, 21, 64, 30), (16, 100)]


def histories(scale):
    """By what the losses of earlier steps were scaled."""
    return {
        "nothing before": [],
        "1 before": [1.0, 1.0],
        "the same before": [scale, scale, scale],
        "another before": [2.5, 2.5, 2.5],
        "another each time": [2.0, 5.0, 7.0, 11.0],
    }


@pytest.fixture(autouse=True)
def no_history():
    scale_history._expectations.clear()


def scaled_gradient(loss, input, target, scale, **options):
    leaf = input.detach().requires_grad_()
    (loss.ours(leaf, target, **options) * scale).backward()
    return leaf.grad


def gradients_of_all_histories(loss, input, target, scale, **options):
    gradients = {}
    for name, scales_before in histories(scale).items():
        scale_history._expectations.clear()
        for scale_before in scales_before:
            scaled_gradient(loss, input, target, scale_before, **options)
        gradients[name] = scaled_gradient(loss, input, target, scale, **options)
    scaled_gradient(loss, input, target, 1.0, **options)
    leaf = input.detach().requires_grad_()
    loss.ours(leaf, target, **options).mul(scale).backward(retain_graph=True)
    gradients["a kept graph"] = leaf.grad
    return gradients


def assert_all_equal(gradients):
    for name, gradient in gradients.items():
        assert torch.equal(gradient, gradients["nothing before"]), name


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_bits_do_not_depend_on_the_steps_before(loss, reduction, shape, dtype):
    input, target = sample(loss, shape, dtype)
    gradients = gradients_of_all_histories(loss, input, target, 0.37, reduction=reduction)
    assert_all_equal(gradients)
    if reduction == "sum":
        leaf = input.detach().requires_grad_()
        losses = loss.ours(leaf, target, reduction="none")
        losses.backward(torch.tensor(0.37, dtype=losses.dtype).expand_as(losses))
        assert torch.equal(leaf.grad, gradients["nothing before"])


OPTIONS = {
    "scale": dict(logit_scale=0.7),
    "softcap": dict(softcap=50.0),
    "z-loss": dict(lse_square_scale=0.3),
    "focal": dict(focal_gamma=1.7),
    "smoothing": dict(label_smoothing=0.3),
    "all but focal": dict(logit_scale=-1.3, softcap=3.0, lse_square_scale=0.3, label_smoothing=0.3),
    "all but smoothing": dict(logit_scale=-1.3, softcap=3.0, lse_square_scale=0.3, focal_gamma=1.7),
}


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("scale", [3.0, -0.37])
@pytest.mark.parametrize("shape", [*SHAPES, (9000, 9), (10, 9, 30, 40)], ids=str)
@pytest.mark.parametrize("kind", ["indices", "weighted indices", "probabilities", "weighted probabilities"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_nor_do_they_with_options(options, kind, shape, scale, dtype):
    """A factor more is multiplied in the same order by whoever computes the gradient."""
    input, target = sample(CROSS_ENTROPY, shape, dtype)
    if "probabilities" in kind:
        target = torch.rand(shape).to(dtype)
        options = {key: value for key, value in options.items() if key != "focal_gamma"}
    if "weighted" in kind:
        options = {**options, "weight": torch.rand(shape[1]).to(dtype) + 0.5}
    assert_all_equal(gradients_of_all_histories(CROSS_ENTROPY, input, target, scale, **options))


@pytest.mark.parametrize("shape", [(90, 1000), (16, 100)], ids=["large", "small"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", [CROSS_ENTROPY, BINARY_CROSS_ENTROPY_WITH_LOGITS], ids=repr)
def test_the_gradient_of_a_constant_scale_is_computed_once(loss, dtype, shape):
    """In the forward of every step but the first, and the backward hands it out."""
    input, target = sample(loss, shape, dtype)

    def operators_of_a_step():
        with profile(activities=[ProfilerActivity.CPU]) as record:
            scaled_gradient(loss, input, target, 1 / 3)
        return [event.name for event in record.events() if event.name.startswith("fused_losses::")]

    operators_of_a_step()
    for _ in range(3):
        assert operators_of_a_step() == [f"fused_losses::{loss.name}_with_gradient"]


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, BINARY_CROSS_ENTROPY_WITH_LOGITS], ids=repr)
def test_the_gradient_of_a_changing_scale_is_computed_once(loss):
    """In the backward of every step but the first two."""
    input, target = sample(loss, (90, 1000))

    def operators_of_a_step(scale):
        with profile(activities=[ProfilerActivity.CPU]) as record:
            scaled_gradient(loss, input, target, scale)
        return {event.name for event in record.events() if event.name.startswith("fused_losses::")}

    for scale in (1 / 3, 1 / 4):
        operators_of_a_step(scale)
    for scale in (1 / 5, 1 / 6, 1 / 7):
        operators = operators_of_a_step(scale)
        assert f"fused_losses::{loss.name}_with_gradient" not in operators
        assert f"fused_losses::{loss.name}_backward" in operators


@pytest.mark.parametrize("scale", [0.0, float("inf"), float("nan"), -1.0])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_special_scales(loss, scale):
    """They are not expected a second time, and give what they give in a small call, which expects nothing."""
    input, target = sample(loss, (90, 1000))
    parts = zip(input.split(9), target.split(9), strict=True)
    small = [scaled_gradient(loss, x, t, scale, reduction="sum") for x, t in parts]
    for _ in range(2):
        gradient = scaled_gradient(loss, input, target, scale, reduction="sum")
        torch.testing.assert_close(gradient, torch.cat(small), rtol=0, atol=0, equal_nan=True)


def test_what_is_expected():
    expectation = Expectation()
    assert expectation.grad_output == 1
    expectation.observe(3.0)
    assert expectation.grad_output == 3  # it changed once: as a new scale that stays
    expectation.observe(3.0)
    expectation.observe(6.0)
    assert expectation.grad_output == 6
    expectation.observe(5.0)
    assert expectation.grad_output is None  # twice in a row: as one that changes always
    expectation.observe(4.0)
    assert expectation.grad_output is None
    expectation.observe(4.0)
    assert expectation.grad_output == 4
    expectation.observe_other_use()
    assert expectation.grad_output is None


def test_the_memory_of_losses_is_bounded():
    for classes in range(2, 400):
        scale_history.expectation_of(torch.empty(1 << 16, 1).expand(-1, classes), 1, "cross_entropy")
    assert len(scale_history._expectations) <= 256


def wait_for(device):
    if device == "cuda":
        torch.cuda.synchronize()


def check_overwritten_logits(shape, scales, device="cpu"):
    """The prepared gradient is multiplied where it can no longer be computed, as torch allows."""
    logits, target = sample(CROSS_ENTROPY, shape, device=device)
    expected = scaled_gradient(CROSS_ENTROPY, logits, target, 0.37)
    for scale in scales:
        wait_for(device)
        leaf = logits.clone().requires_grad_()
        value = CROSS_ENTROPY.ours(leaf, target) * scale
        with torch.no_grad():
            leaf.fill_(3)
        value.backward()
        few_roundings = 4 * torch.finfo(torch.float32).eps
        torch.testing.assert_close(leaf.grad, expected * (scale / 0.37), rtol=few_roundings, atol=1e-12)


def test_logits_overwritten_before_the_backward_of_a_large_loss():
    check_overwritten_logits((90, 1000), (1.0, 0.37, 5.0))


def test_logits_overwritten_before_the_backward_of_a_small_loss_whose_scale_changes():
    logits, target = sample(CROSS_ENTROPY, (16, 100))
    for scale in (2.0, 5.0, 7.0):
        scaled_gradient(CROSS_ENTROPY, logits, target, scale)
    check_overwritten_logits((16, 100), (3.0, 0.37, 5.0))


# On a device, which tells the host later what it was asked for.


@pytest.fixture
def no_loss_is_small(monkeypatch):
    monkeypatch.setattr(scale_history, "_SMALL_ELEMENTS", 0)
    monkeypatch.setattr(scale_history, "_SMALL_ELEMENTS_ON_DEVICE", 0)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_bits_do_not_depend_on_what_a_device_has_told(loss, reduction, dtype, device, no_loss_is_small):
    long = [(4, 150_000), (300, 10_000)] if device == "cuda" else []
    for shape in [(3, 300), (2, 4500), (70, 10), (2, 21, 5, 3), *long]:
        input, target = sample(loss, shape, dtype, device)
        for last in (0.37, 1.0):
            gradients = {}
            for name, scales in histories(0.37).items():
                scale_history._expectations.clear()
                for scale in scales:
                    scaled_gradient(loss, input, target, scale, reduction=reduction)
                    wait_for(device)
                gradients[name] = scaled_gradient(loss, input, target, last, reduction=reduction)
            for name, gradient in gradients.items():
                assert torch.equal(gradient, gradients["nothing before"]), (name, last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", [CROSS_ENTROPY, BINARY_CROSS_ENTROPY_WITH_LOGITS], ids=repr)
def test_what_a_device_tells_is_expected(loss, dtype, device, no_loss_is_small):
    input, target = sample(loss, (9, 100), dtype, device)

    def expected_after(scale):
        scaled_gradient(loss, input, target, scale)
        wait_for(device)
        (expectation,) = scale_history._expectations.values()
        return expectation.grad_output

    assert [expected_after(scale) for scale in (0.25, 0.25, 0.5, 0.75)] == [0.25, 0.25, 0.5, None]


def test_a_device_is_asked_until_it_has_told_and_then_at_times(device):
    expectation = scale_history.DeviceExpectation()
    grad_output = torch.ones((), device=device)
    for _ in range(10):  # a host that runs ahead reads one answer to them all
        expectation.observe_on_device(grad_output)
    wait_for(device)
    assert expectation.grad_output == 1
    asked = 1
    for _ in range(100):
        expectation.observe_on_device(grad_output)
        wait_for(device)
        asked += not expectation._told.isnan()
        assert expectation.grad_output == 1
        assert expectation._told.isnan()
    assert asked == 4 + (10 + 100) // 17


def test_logits_overwritten_on_a_device(device, no_loss_is_small):
    check_overwritten_logits((9, 100), (0.37, 5.0, 2.0, 3.0), device)
