"""Dispatch modes see the fused operators, once each, and never a shortcut past them."""

import collections

import pytest
import torch
from losses import LOSSES, REDUCTIONS, sample
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace.startswith("fused_losses"):
            self.counts[func._opname] += 1
        return func(*args, **(kwargs or {}))


def forward_operator(loss):
    return "cross_entropy_with_statistics" if loss.name == "cross_entropy" else loss.name


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_checkpoint_computes_again_outside_of_the_mode(loss, reduction, device):
    """What the operator has saved, the eager Function must save again, in the same order."""
    input, target = sample(loss, (6, 5), device=device)
    input.requires_grad_()
    with Counting():
        value = checkpoint(lambda x: loss.ours(x, target, reduction=reduction), input, use_reentrant=False)
    (gradient,) = torch.autograd.grad(value.sum(), input)
    (expected,) = torch.autograd.grad(loss.ours(input, target, reduction=reduction).sum(), input)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_second_derivative_under_a_mode(loss, device):
    """That of nll_loss is zeros, and not an error of a gradient that requires none."""
    input, target = sample(loss, (6, 5), torch.float64, device)
    input.requires_grad_()
    with Counting():
        (gradient,) = torch.autograd.grad(loss.ours(input, target), input, create_graph=True)
        (ours,) = torch.autograd.grad(gradient.square().sum(), input)
    (gradient,) = torch.autograd.grad(loss.torchs(input, target), input, create_graph=True)
    (torchs,) = torch.autograd.grad(gradient.square().sum(), input)
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_counting_mode_sees_each_operator_once(loss, reduction, device):
    input, target = sample(loss, (6, 5), device=device)
    gradients = []
    for mode in (Counting(), torch.enable_grad()):
        leaf = input.clone().requires_grad_()
        with mode:
            value = loss.ours(leaf, target, reduction=reduction)
            (3 * value).sum().backward()
        gradients.append((value.detach(), leaf.grad))
        if isinstance(mode, Counting):
            assert mode.counts == {forward_operator(loss): 1, f"{loss.name}_backward": 1}
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("where", ["forward", "backward", "both"])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_counting_flops_changes_nothing(loss, where, device):
    input, target = sample(loss, (6, 5), device=device)
    gradients = []
    for counted in (False, True):
        layer = torch.nn.Linear(5, 5, device=device)
        with torch.no_grad():
            layer.weight.copy_(torch.eye(5))
            layer.bias.zero_()
        counter = FlopCounterMode(display=False)
        with counter if counted and where != "backward" else torch.enable_grad():
            value = loss.ours(layer(input), target)
            if where == "both":
                value.backward()
        with counter if counted and where == "backward" else torch.enable_grad():
            if where != "both":
                value.backward()
        assert not counted or counter.get_total_flops() > 0
        gradients.append(layer.weight.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("saved", [True, False], ids=["the loss is saved", "the loss is computed again"])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_selective_checkpointing(loss, saved):
    input, target = sample(loss, (6, 5))
    name = f"fused_losses::{forward_operator(loss)}"
    policy = CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.MUST_RECOMPUTE

    def policy_of(context, operator, *args, **kwargs):
        is_ours = getattr(operator, "name", str)() == name
        return policy if is_ours else CheckpointPolicy.PREFER_RECOMPUTE

    counting = Counting()
    leaf = input.clone().requires_grad_()
    with counting:
        value = checkpoint(
            lambda x: loss.ours(x * 1, target),
            leaf,
            use_reentrant=False,
            context_fn=lambda: create_selective_checkpoint_contexts(policy_of),
        )
        value.backward()
    expected = input.clone().requires_grad_()
    loss.ours(expected * 1, target).backward()
    torch.testing.assert_close(leaf.grad, expected.grad, rtol=0, atol=0)
    assert counting.counts[forward_operator(loss)] == (1 if saved else 2)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_fake_tensors(loss, dtype, reduction):
    """Shapes, types and strides without values: also of the gradient, also outside the mode that made them."""
    input, target = sample(loss, (2, 5, 3), dtype)
    real = input.clone().requires_grad_()
    expected = loss.ours(real, target, reduction=reduction)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), real)
    mode = FakeTensorMode()
    fakes = mode.from_tensor(input).requires_grad_(), mode.from_tensor(target)
    for context in (mode, torch.enable_grad()):
        with context:
            value = loss.ours(*fakes, reduction=reduction)
            (gradient,) = torch.autograd.grad(value.sum(), fakes[0])
        for fake, tensor in ((value, expected), (gradient, expected_gradient)):
            assert (fake.shape, fake.dtype, fake.stride()) == (tensor.shape, tensor.dtype, tensor.stride())


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_tensors_on_the_meta_device(loss):
    input, target = sample(loss, (6, 5))
    value = loss.ours(input.to("meta").requires_grad_(), target.to("meta"))
    value.backward()
    assert value.is_meta and value.shape == ()
