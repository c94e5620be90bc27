"""TorchScript: our modules can be scripted, traced, saved and loaded like torch's."""

import io

import pytest
import torch
from losses import CROSS_ENTROPY, LOSSES, sample

import fused_losses

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")

FEW_ROUNDINGS = 8 * torch.finfo(torch.float32).eps


def assert_like_torchs(compiled, loss, input, target, **options):
    leaves = [input.clone().requires_grad_(), input.clone().requires_grad_()]
    values = [compiled(leaves[0], target), loss.torchs(leaves[1], target, **options)]
    gradients = [torch.autograd.grad(value, leaf)[0] for value, leaf in zip(values, leaves, strict=True)]
    torch.testing.assert_close(values[0], values[1], rtol=FEW_ROUNDINGS, atol=FEW_ROUNDINGS)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=FEW_ROUNDINGS, atol=FEW_ROUNDINGS)


def saved_and_loaded(scripted):
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_scripted_module(loss):
    weight = torch.linspace(0.5, 2, 5)
    scripted = torch.jit.script(loss.our_module(weight=weight))
    assert_like_torchs(scripted, loss, *sample(loss, (8, 5)), weight=weight)
    assert_like_torchs(saved_and_loaded(scripted), loss, *sample(loss, (8, 5)), weight=weight)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_scripted_module_without_options(loss):
    assert_like_torchs(torch.jit.script(loss.our_module()), loss, *sample(loss, (8, 5)))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_scripted_module_that_was_converted(loss):
    model = torch.nn.Sequential(loss.torch_module(reduction="sum"))
    scripted = torch.jit.script(fused_losses.convert(model)[0])
    assert_like_torchs(scripted, loss, *sample(loss, (8, 5)), reduction="sum")
    assert_like_torchs(saved_and_loaded(scripted), loss, *sample(loss, (8, 5)), reduction="sum")


def test_scripted_cross_entropy_keeps_its_options():
    logits, target = sample(CROSS_ENTROPY, (8, 5))
    options = dict(ignore_index=2, label_smoothing=0.1, reduction="sum")
    scripted = torch.jit.script(CROSS_ENTROPY.our_module(**options))
    assert_like_torchs(scripted, CROSS_ENTROPY, logits, target, **options)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_traced_module(loss):
    """A trace with one batch computes the loss of another."""
    traced = torch.jit.trace(loss.our_module(), sample(loss, (8, 5)))
    assert_like_torchs(traced, loss, *sample(loss, (8, 5)))
    assert_like_torchs(saved_and_loaded(traced), loss, *sample(loss, (8, 5)))
