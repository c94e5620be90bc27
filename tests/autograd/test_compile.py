"""torch.compile(fullgraph=True): the loss of a compiled function, and its gradient, are the eager ones."""

import pytest
import torch
from losses import CROSS_ENTROPY, LOSSES, REDUCTIONS, sample, sample_class_probabilities
from torch._dynamo.testing import CompileCounterWithBackend

import fused_losses

FEW_ROUNDINGS = 16 * torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def loss_and_gradient(step, input, target):
    leaf = input.clone().requires_grad_()
    value = step(leaf, target)
    value.sum().backward()
    return value.detach(), leaf.grad


def check_compiled(step, torchs_step, input, target, backend="aot_eager", **compile_options):
    compiled = torch.compile(step, backend=backend, fullgraph=True, **compile_options)
    ours = loss_and_gradient(compiled, input, target)
    torchs = loss_and_gradient(torchs_step, input, target)
    torch.testing.assert_close(ours, torchs, rtol=FEW_ROUNDINGS, atol=FEW_ROUNDINGS)
    return compiled


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_function(loss, reduction, device):
    input, target = sample(loss, (6, 5), device=device)
    check_compiled(
        lambda x, t: loss.ours(x, t, reduction=reduction),
        lambda x, t: loss.torchs(x, t, reduction=reduction),
        input,
        target,
    )


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_module_after_a_layer(loss, device):
    layer = torch.nn.Linear(12, 5, device=device)
    features, target = torch.randn(16, 12, device=device), sample(loss, (16, 5), device=device)[1]
    criterion, torchs_criterion = loss.our_module(), loss.torch_module()
    check_compiled(
        lambda x, t: criterion(layer(x).sigmoid(), t),
        lambda x, t: torchs_criterion(layer(x).sigmoid(), t),
        features,
        target,
    )


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_dynamic_shapes(loss, device):
    """One compiled function for batches of several sizes."""
    compiled = check_compiled(loss.ours, loss.torchs, *sample(loss, (6, 5), device=device), dynamic=True)
    for num_rows in (7, 64):
        input, target = sample(loss, (num_rows, 5), device=device)
        ours, torchs = (loss_and_gradient(step, input, target) for step in (compiled, loss.torchs))
        torch.testing.assert_close(ours, torchs, rtol=FEW_ROUNDINGS, atol=FEW_ROUNDINGS)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_dynamic_shapes_are_traced_once(loss):
    """See Note [Defaults of numbers] in fused_losses/functional.py."""
    backend = CompileCounterWithBackend("aot_eager")
    torch.compile(lambda *tensors: loss.ours(*tensors), backend=backend, dynamic=True)(*sample(loss, (6, 5)))
    assert backend.frame_count == 1


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_without_gradient(loss, device):
    input, target = sample(loss, (6, 5), device=device)
    compiled = torch.compile(loss.ours, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(input, target), loss.torchs(input, target), rtol=FEW_ROUNDINGS, atol=0)


def test_cross_entropy_of_probabilities_with_weight_and_smoothing(device):
    logits, _ = sample(CROSS_ENTROPY, (6, 5), device=device)
    weight = torch.rand(5, device=device)
    check_compiled(
        lambda x, t: CROSS_ENTROPY.ours(x, t, weight, label_smoothing=0.1),
        lambda x, t: CROSS_ENTROPY.torchs(x, t, weight, label_smoothing=0.1),
        logits,
        sample_class_probabilities((6, 5), device=device),
    )


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_patched_torch_inside_a_compiled_function(loss, device):
    input, target = sample(loss, (6, 5), device=device)
    with fused_losses.patched():
        check_compiled(lambda x, t: getattr(torch.nn.functional, loss.name)(x, t), loss.torchs, input, target)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_compiled_gradient_transform(loss, device):
    """compile(func.grad): an op without a derivative of its own would silently give zeros here."""
    input, target = sample(loss, (6, 5), device=device)
    compiled = torch.compile(
        lambda x, t: torch.func.grad(lambda y: loss.ours(y, t))(x), backend="aot_eager", fullgraph=True
    )
    torchs = torch.func.grad(lambda y: loss.torchs(y, target))(input)
    torch.testing.assert_close(compiled(input, target), torchs, rtol=FEW_ROUNDINGS, atol=FEW_ROUNDINGS)
    assert (torchs != 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_inductor(loss, device):
    check_compiled(loss.ours, loss.torchs, *sample(loss, (16, 33), device=device), backend="inductor")


@pytest.mark.slow
def test_inductor_module_with_weight_and_ignored_rows(device):
    logits, target = sample(CROSS_ENTROPY, (16, 33), device=device)
    target[::3] = -100
    weight = torch.linspace(0.5, 2, 33, device=device)
    check_compiled(
        fused_losses.CrossEntropyLoss(weight=weight, label_smoothing=0.1),
        torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1),
        logits,
        target,
        backend="inductor",
    )
