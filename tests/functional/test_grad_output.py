"""Gradients follow grad_output as it comes: not 1, zero, negative, expanded, not contiguous, different per row."""

import pytest
import torch
from losses import CROSS_ENTROPY, FLOAT_DTYPES, LOSSES, sample
from parity import check_parity, run

SHAPES = [(6, 5), (3, 300), (2, 5, 4, 7)]  # rows of few classes, of many, and a strided class axis


def shape_of_losses(loss, shape):
    return shape[:1] + shape[2:] if loss.by_class else shape


@pytest.mark.parametrize("scale", [2.5, -3.0, 0.0, 1e-3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_scalar(loss, dtype, reduction, scale, device):
    input, target = sample(loss, (6, 5), dtype, device)
    check_parity(loss, input, target, torch.tensor(scale, device=device), reduction=reduction)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_of_every_sign_per_element(loss, dtype, shape, device):
    input, target = sample(loss, shape, dtype, device)
    grad_output = torch.randn(shape_of_losses(loss, shape), device=device)
    grad_output.view(-1)[::4] = 0
    check_parity(loss, input, target, grad_output, reduction="none")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_expanded(loss, shape, device):
    """What losses.sum().backward() hands down: one number with strides of 0."""
    input, target = sample(loss, shape, device=device)
    grad_output = torch.tensor(-1.5, device=device).expand(shape_of_losses(loss, shape))
    check_parity(loss, input, target, grad_output, reduction="none")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_not_contiguous(loss, shape, device):
    input, target = sample(loss, shape, device=device)
    of_losses = shape_of_losses(loss, shape)
    every_second = torch.randn(*of_losses[:-1], 2 * of_losses[-1], device=device)[..., ::2]
    check_parity(loss, input, target, every_second, reduction="none")
    transposed = torch.randn(of_losses[::-1], device=device).permute(*reversed(range(len(of_losses))))
    check_parity(loss, input, target, transposed, reduction="none")


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_gradient_is_linear_in_powers_of_two(loss, device):
    """Scaling grad_output by a power of two scales the gradient exactly, because no rounding depends on it."""
    input, target = sample(loss, (64, 33), device=device)
    for reduction in ("mean", "sum"):
        once = run(loss.ours, input, target, torch.tensor(1.0, device=device), reduction=reduction).gradient
        eighth = run(loss.ours, input, target, torch.tensor(0.125, device=device), reduction=reduction).gradient
        assert torch.equal(once / 8, eighth)


def test_zero_grad_output_of_one_row_zeroes_that_row_alone(device):
    logits, target = sample(CROSS_ENTROPY, (5, 7), device=device)
    grad_output = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], device=device)
    gradient = run(CROSS_ENTROPY.ours, logits, target, grad_output, reduction="none").gradient
    assert ((gradient == 0).all(1) == (grad_output == 0)).all()


@pytest.mark.parametrize("grad_output", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_not_finite(loss, grad_output, device):
    """A loss scale that overflowed shows in the gradient where it shows in torch's (be it as infinity or as NaN)."""
    input, target = sample(loss, (6, 5), device=device)
    grad_output = torch.tensor(grad_output, device=device)
    ours, torchs = (run(function, input, target, grad_output).gradient for function in (loss.ours, loss.torchs))
    assert torch.equal(ours.isfinite(), torchs.isfinite())


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 100, 4, 4), (3, 3000)], ids=str)
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_not_finite_at_ignored_positions(value, shape, label_smoothing, device):
    """sqrt() of a loss of 0 has an infinite slope, which must not reach what has no part in the loss."""
    logits, target = sample(CROSS_ENTROPY, shape, device=device)
    target[1] = -100
    grad_output = torch.ones(shape_of_losses(CROSS_ENTROPY, shape), device=device)
    grad_output[1] = value
    options = dict(reduction="none", label_smoothing=label_smoothing)
    check_parity(CROSS_ENTROPY, logits, target, grad_output, **options)
    assert (run(CROSS_ENTROPY.ours, logits, target, grad_output, **options).gradient[1] == 0).all()


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 100, 4, 4)], ids=str)
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_scalar_that_is_not_finite_leaves_ignored_positions_alone_on_the_cpu(value, shape, dtype):
    """On a GPU nobody looks at the scalar, and what is multiplied by it there becomes NaN."""
    logits, target = sample(CROSS_ENTROPY, shape, dtype)
    target[1] = -100
    gradient = run(CROSS_ENTROPY.ours, logits, target, torch.tensor(value)).gradient
    assert (gradient[1] == 0).all()
    assert not gradient[0].isfinite().all()
