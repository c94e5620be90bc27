"""Hooks on the input, its node and the loss run as often as with torch's loss, whichever way a backward takes.

A backward that is differentiated, batched or watched by a mode once differentiated torch's formula with respect to the
saved input itself, whose hooks then ran twice: a sign that a hook turns was turned back.
"""

from contextlib import nullcontext

import pytest
import torch
from losses import LOSSES, REDUCTIONS, sample
from torch.autograd import Variable
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


# How a backward is called, and what surrounds it.
WAYS = {
    "plain": (dict(), nullcontext),
    "create_graph": (dict(create_graph=True), nullcontext),
    "retain_graph": (dict(retain_graph=True), nullcontext),
    "under FlopCounterMode": (dict(), lambda: FlopCounterMode(display=False)),
    "under a dispatch mode, create_graph": (dict(create_graph=True), Watching),
}


def each_way(test):
    test = pytest.mark.parametrize("way", WAYS)(test)
    return for_each_loss(test)


def for_each_loss(test):
    test = pytest.mark.parametrize("reduction", REDUCTIONS)(test)
    return pytest.mark.parametrize("loss", LOSSES, ids=repr)(test)


def of_both(loss, program, device):
    """``program(function, leaf, target)`` with ours and with torch's."""
    results = []
    for function in (loss.ours, loss.torchs):
        torch.manual_seed(3)
        input, target = sample(loss, (6, 5), torch.float64, device)
        results.append(program(function, input.requires_grad_(), target))
    return results


def assert_same(ours, torchs):
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)


def grad_output_of(value):
    return torch.linspace(0.5, -1.5, value.numel(), dtype=value.dtype, device=value.device).view_as(value)


@each_way
def test_a_hook_on_an_activation(loss, reduction, way, device):
    options, context = WAYS[way]
    calls = []

    def program(function, leaf, target):
        activation = leaf * 1
        activation.register_hook(lambda gradient: calls.append(1) or -2 * gradient)
        value = function(activation, target, reduction=reduction)
        with context():
            return torch.autograd.grad(value, leaf, grad_output_of(value), **options)[0].detach()

    assert_same(*of_both(loss, program, device))
    assert len(calls) == 2  # one each


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@each_way
def test_a_hook_on_a_leaf(loss, reduction, way, device):
    options, context = WAYS[way]

    def program(function, leaf, target):
        leaf.register_hook(lambda gradient: -2 * gradient)
        value = function(leaf, target, reduction=reduction)
        with context():
            value.backward(grad_output_of(value), **options)
        gradient, leaf.grad = leaf.grad.detach(), None
        return gradient

    assert_same(*of_both(loss, program, device))


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@each_way
def test_retain_grad_and_a_prehook_of_the_node(loss, reduction, way, device):
    options, context = WAYS[way]

    def program(function, leaf, target):
        activation = leaf * 1
        activation.retain_grad()
        activation.grad_fn.register_prehook(lambda gradients: tuple(3 * gradient for gradient in gradients))
        value = function(activation, target, reduction=reduction)
        with context():
            value.backward(grad_output_of(value), **options)
        gradients = activation.grad.detach(), leaf.grad.detach()
        activation.grad = leaf.grad = None
        return gradients

    assert_same(*of_both(loss, program, device))


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@each_way
def test_a_hook_for_several_gradients_fires_once(loss, reduction, way, device):
    options, context = WAYS[way]
    calls = []

    def program(function, leaf, target):
        activation = leaf * 1
        register_multi_grad_hook([leaf, activation], lambda gradients: calls.append(len(gradients)))
        value = function(activation, target, reduction=reduction)
        with context():
            value.backward(grad_output_of(value), **options)
        leaf.grad = None

    of_both(loss, program, device)
    assert calls == [2, 2]


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@for_each_loss
def test_a_callback_that_a_hook_queues_runs_after_the_backward(loss, reduction, device):
    def program(function, leaf, target):
        seen = []
        activation = leaf * 1
        queue = Variable._execution_engine.queue_callback
        activation.register_hook(lambda _: queue(lambda: seen.append(leaf.grad is not None)))
        value = function(activation, target, reduction=reduction)
        value.backward(grad_output_of(value), create_graph=True)
        leaf.grad = None
        return seen

    ours, torchs = of_both(loss, program, device)
    assert ours == torchs == [True]


@for_each_loss
def test_hooks_under_second_and_third_derivatives(loss, reduction, device):
    def program(function, leaf, target):
        activation = leaf * 1
        activation.register_hook(lambda gradient: -2 * gradient)
        value = function(activation, target, reduction=reduction)
        derivatives = [value]
        for _ in range(3):
            last = derivatives[-1]
            total = (last * torch.linspace(1, 2, last.numel(), device=last.device).view_as(last)).sum()
            if not total.requires_grad:
                break
            (gradient,) = torch.autograd.grad(total, leaf, create_graph=True, allow_unused=True)
            if gradient is None:
                break
            derivatives.append(gradient)
        return [derivative.detach() for derivative in derivatives[1:]]

    ours, torchs = of_both(loss, program, device)
    # Past its second derivative, zeros, torch's nll_loss has a third, of zeros too.
    assert len(ours) == len(torchs) or (loss.name == "nll_loss" and len(ours) >= 2)
    assert_same(ours[: len(torchs)], torchs[: len(ours)])


@for_each_loss
def test_batched_gradients_with_a_hook_on_the_loss(loss, reduction, device):
    """Hooks on the input would be batched too, which legacy vmap has few rules for."""

    def program(function, leaf, target):
        value = function(leaf * 1, target, reduction=reduction)
        value.register_hook(lambda gradient: -2 * gradient)
        batch = torch.stack([grad_output_of(value), torch.ones_like(value), -grad_output_of(value)])
        (gradients,) = torch.autograd.grad(value, leaf, batch, is_grads_batched=True)
        return gradients

    assert_same(*of_both(loss, program, device))


@for_each_loss
def test_the_node_of_a_loss_can_be_called(loss, reduction, device):
    """As torch's own nodes can."""
    input, target = sample(loss, (6, 5), torch.float64, device)
    value = loss.ours(input.requires_grad_(), target, reduction=reduction)
    grad_output = grad_output_of(value)
    by_hand = value.grad_fn(grad_output)
    (expected,) = torch.autograd.grad(value, input, grad_output)
    assert_same(by_hand.detach(), expected)
