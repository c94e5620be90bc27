"""Tensors that were saved through hooks, of which torch compares no versions: Note [Versions under hooks]."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from losses import CROSS_ENTROPY, REDUCTIONS, sample
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from fused_losses import functional
from fused_losses.operators import versions


class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5)], ids=str)
def test_logits_modified_after_the_loss_where_saved_tensors_pass_through_hooks(shape, reduction, device):
    """Torch compares no versions then, and its own cross-entropy saves no logits."""

    def region(leaf, modifies):
        logits = leaf * 1
        loss = CROSS_ENTROPY.ours(logits, target, reduction=reduction)
        if modifies:
            logits.zero_()
        return loss.exp()

    leaf, target = sample(CROSS_ENTROPY, shape, device=device)
    leaf.requires_grad_()
    expected = torch.autograd.grad(region(leaf, modifies=False).sum(), leaf)
    for modifies in (False, True):
        values = [checkpoint(region, leaf, modifies, use_reentrant=False)]
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            values.append(region(leaf, modifies))
        for value in values:
            with pytest.raises(RuntimeError, match="modified by an inplace") if modifies else nullcontext():
                torch.testing.assert_close(torch.autograd.grad(value.sum(), leaf), expected)


def test_logits_modified_before_a_loss_that_is_saved_through_hooks(device):
    """They have a version by then, and the copies that hooks hand out have versions of their own."""

    def unpack(tensor):
        copy = torch.empty_like(tensor)
        for _ in range(3):
            copy.copy_(tensor)
        return copy

    leaf, target = sample(CROSS_ENTROPY, (4, 3), device=device)
    leaf.requires_grad_()
    gradients = []
    for hooks in (saved_tensors_hooks(lambda t: t, lambda t: t), saved_tensors_hooks(lambda t: t, unpack)):
        logits = leaf * 1
        with hooks:
            first = CROSS_ENTROPY.ours(logits, target)
        first.backward(retain_graph=True)
        logits.mul_(1.0)
        with hooks:
            second = CROSS_ENTROPY.ours(logits, target)
        unhooked = CROSS_ENTROPY.ours(logits, target)
        gradients += [torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in (second, unhooked)]
    for gradient in gradients:
        torch.testing.assert_close(gradient, gradients[0])


def _of_layer(loss_of):
    weight = torch.linspace(-1, 1, 15).view(5, 3)
    return lambda logits, target: loss_of(logits, weight.to(logits.device), target)


READERS = {
    "cross_entropy": functional.cross_entropy,
    "none": partial(functional.cross_entropy, reduction="none"),
    "softcap": partial(functional.cross_entropy, softcap=3.0),
    "token_statistics": lambda logits, target: functional.token_statistics(logits, target).log_prob,
    "linear_cross_entropy": _of_layer(functional.linear_cross_entropy),
    "linear_token_statistics": _of_layer(lambda *tensors: functional.linear_token_statistics(*tensors).entropy),
}


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("mode", [nullcontext, Passing])
@pytest.mark.parametrize("reader", READERS)
def test_every_loss_that_reads_again_knows_the_version_that_it_read(reader, mode, twice, device):
    """Also where a later loss of the same tensor was computed of a later version."""
    if mode is Passing and reader.startswith("linear"):
        pytest.skip("a dispatch mode sees torch's operators, which know no versions under hooks")
    target = torch.tensor([0, 2, 1, 1], device=device)

    def region(leaf, modifies):
        values = leaf * 1
        loss = READERS[reader](values, target).sum()
        if modifies:
            values.add_(1)
        if twice:
            loss = loss + READERS[reader](values, target).sum()
        return loss.sin()  # a checkpoint computes again as far as something is saved

    leaf = torch.randn(4, 3, device=device, requires_grad=True)
    with mode():
        expected = torch.autograd.grad(region(leaf, modifies=False), leaf)
        for modifies in (False, True):
            values = [checkpoint(region, leaf, modifies, use_reentrant=False)]
            with save_on_cpu() if device == "cpu" else saved_tensors_hooks(lambda t: t, lambda t: t):
                values.append(region(leaf, modifies))
            for value in values:
                with pytest.raises(RuntimeError, match="modified by an inplace") if modifies else nullcontext():
                    torch.testing.assert_close(torch.autograd.grad(value, leaf), expected)


def test_no_version_is_forgotten(device):
    """However many losses are computed before the first backward."""
    leaf, target = sample(CROSS_ENTROPY, (4, 3), device=device)
    logits = leaf.requires_grad_() * 1
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        losses = [CROSS_ENTROPY.ours(logits, target) for _ in range(600)]
    assert len(versions._versions) >= 600
    logits.zero_()
    for loss in (losses[0], losses[-1]):
        with pytest.raises(RuntimeError, match="modified by an inplace"):
            loss.backward(retain_graph=True)
    del losses, loss
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        for _ in range(1300):  # what is gone is left out by then
            CROSS_ENTROPY.ours(leaf * 1, target)
    assert len(versions._versions) < 1300


def test_a_loss_without_hooks_after_one_with_hooks(device):
    """Torch compares its version, which may be a later one."""
    leaf, target = sample(CROSS_ENTROPY, (8, 6), device=device)
    logits = leaf.requires_grad_() * 1
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        first = functional.cross_entropy(logits, target, reduction="none")
    first.sum().backward(retain_graph=True)
    with torch.no_grad():
        logits.add_(1)
    functional.cross_entropy(logits, target, reduction="none").sum().backward()
