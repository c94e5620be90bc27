"""First and second derivatives of every loss against finite differences in float64; batched gradients; forward mode."""

from contextlib import nullcontext

import pytest
import torch
from losses import (
    BINARY_CROSS_ENTROPY,
    BINARY_CROSS_ENTROPY_WITH_LOGITS,
    CLASS_LOSSES,
    CROSS_ENTROPY,
    LOSSES,
    NLL_LOSS,
    REDUCTIONS,
    sample,
    sample_class_probabilities,
    sample_input,
)
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from fused_losses.functional import cross_entropy, sigmoid_focal_loss, token_statistics

SHAPES = [(3, 4), (2, 3, 4)]  # class axis last, and class axis strided


def check_derivatives(function, arguments, **gradcheck_options):
    assert gradcheck(function, arguments, check_batched_grad=True, **gradcheck_options)
    assert gradgradcheck(function, arguments, check_batched_grad=True)


def leaf(tensor):
    return tensor.detach().requires_grad_()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_input(loss, shape, reduction, device):
    input, target = sample(loss, shape, torch.float64, device)
    check_derivatives(lambda x: loss.ours(x, target, reduction=reduction), (leaf(input),))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_input_in_forward_mode(loss, reduction, device):
    input, target = sample(loss, (3, 4), torch.float64, device)
    check_derivatives(
        lambda x: loss.ours(x, target, reduction=reduction),
        (leaf(input),),
        check_forward_ad=True,
        check_batched_forward_grad=True,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_with_weight_ignored_rows_and_smoothing(label_smoothing, reduction, device):
    logits = torch.randn(4, 3, dtype=torch.float64, device=device)
    target = torch.tensor([0, -100, 2, 1], device=device)
    weight = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64, device=device)
    options = dict(weight=weight, label_smoothing=label_smoothing, reduction=reduction)
    check_derivatives(lambda x: CROSS_ENTROPY.ours(x, target, **options), (leaf(logits),))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nll_loss_with_weight_and_ignored_rows(reduction, device):
    input = sample_input(NLL_LOSS, (4, 3), torch.float64, device)
    target = torch.tensor([0, -100, 2, 1], device=device)
    weight = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64, device=device)
    check_derivatives(lambda x: NLL_LOSS.ours(x, target, weight=weight, reduction=reduction), (leaf(input),))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("target_wants_gradient", [False, True], ids=["logits", "logits and target"])
def test_class_probabilities(target_wants_gradient, label_smoothing, reduction, device):
    logits = leaf(torch.randn(3, 4, dtype=torch.float64, device=device))
    target = sample_class_probabilities((3, 4), torch.float64, device).requires_grad_(target_wants_gradient)
    weight = 0.5 + torch.rand(4, dtype=torch.float64, device=device)
    options = dict(weight=weight, label_smoothing=label_smoothing, reduction=reduction)
    check_derivatives(lambda x, t: CROSS_ENTROPY.ours(x, t, **options), (logits, target))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target_wants_gradient", [False, True], ids=["input", "input and target"])
def test_binary_cross_entropy_with_weight(target_wants_gradient, reduction, device):
    input, target = sample(BINARY_CROSS_ENTROPY, (3, 4), torch.float64, device)
    weight = torch.rand(4, dtype=torch.float64, device=device)
    check_derivatives(
        lambda x, t: BINARY_CROSS_ENTROPY.ours(x, t, weight=weight, reduction=reduction),
        (leaf(input), target.requires_grad_(target_wants_gradient)),
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target_wants_gradient", [False, True], ids=["logits", "logits and target"])
@pytest.mark.parametrize("weights", [["weight"], ["pos_weight"], ["weight", "pos_weight"]], ids="+".join)
def test_binary_cross_entropy_with_logits_and_weights(weights, target_wants_gradient, reduction, device):
    logits, target = sample(BINARY_CROSS_ENTROPY_WITH_LOGITS, (3, 4), torch.float64, device)
    options = {name: 0.5 + torch.rand(4, dtype=torch.float64, device=device) for name in weights}
    check_derivatives(
        lambda x, t: BINARY_CROSS_ENTROPY_WITH_LOGITS.ours(x, t, reduction=reduction, **options),
        (leaf(logits), target.requires_grad_(target_wants_gradient)),
    )


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_batched_gradients_are_torchs(loss, device):
    """torch.autograd.grad(is_grads_batched=True): one backward for a whole Jacobian."""
    input, target = sample(loss, (4, 5), torch.float64, device)
    jacobians = []
    for function in (loss.ours, loss.torchs):
        x = leaf(input)
        losses = function(x, target, reduction="none")
        each_loss = torch.eye(losses.numel(), dtype=torch.float64, device=device).view(-1, *losses.shape)
        jacobians += torch.autograd.grad(losses, x, each_loss, is_grads_batched=True)
    torch.testing.assert_close(jacobians[0], jacobians[1], rtol=0, atol=8 * torch.finfo(torch.float64).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_batched_gradients_are_those_of_each(loss, reduction, dtype, device):
    """Of a scaled loss what the type has no number for without the scale, too."""
    input, target = sample(loss, (4, 700), dtype, device)
    if loss is not NLL_LOSS:
        input[:2, ::2] = 1e-4 if loss is BINARY_CROSS_ENTROPY else -9
    x = leaf(input)
    value = loss.ours(x, target, reduction=reduction)
    batch = torch.full((2, *value.shape), 1024.0, dtype=value.dtype, device=device)
    batch[1] /= -3
    (batched,) = torch.autograd.grad(value, x, batch, is_grads_batched=True, retain_graph=True)
    for gradient, grad_output in zip(batched, batch, strict=True):
        (alone,) = torch.autograd.grad(value, x, grad_output, retain_graph=True)
        torch.testing.assert_close(gradient, alone, rtol=1.01 * torch.finfo(dtype).eps, atol=6e-8)


@pytest.mark.parametrize("num_ignored", [1, 4], ids=["some ignored", "all ignored"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_batched_gradients_of_ignored_targets_are_zero(loss, reduction, num_ignored, device):
    """Where nothing counts, the mean divides by 0 and its gradient is zero all the same."""
    input, target = sample(loss, (4, 5), torch.float64, device)
    target[:num_ignored] = -100
    gradients = []
    for function in (loss.ours, loss.torchs):
        x = leaf(input)
        value = function(x, target, reduction=reduction)
        batch = torch.linspace(-1, 2, 3 * value.numel(), dtype=torch.float64, device=device).view(3, *value.shape)
        gradients += torch.autograd.grad(value, x, batch, is_grads_batched=True)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=8 * torch.finfo(torch.float64).eps)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_gradient_with_create_graph_is_the_gradient_without(loss, reduction, device):
    """The differentiable backward is another computation than the fused one; in float32 they differ by roundings."""
    input, target = sample(loss, (16, 33), device=device)
    x = leaf(input)
    value = loss.ours(x, target, reduction=reduction).sum()
    (plain,) = torch.autograd.grad(value, x, retain_graph=True)
    (differentiable,) = torch.autograd.grad(value, x, create_graph=True)
    assert not plain.requires_grad
    atol = 16 * torch.finfo(torch.float32).eps * plain.abs().amax().item()
    torch.testing.assert_close(differentiable.detach(), plain, rtol=0, atol=atol)


def test_gradient_penalty(device):
    """The gradient of the squared norm of the input's gradient, as WGAN-GP style training takes it."""
    logits, target = sample(CROSS_ENTROPY, (8, 5), torch.float64, device)
    penalties = []
    for function in (CROSS_ENTROPY.ours, CROSS_ENTROPY.torchs):
        x = leaf(logits)
        (gradient,) = torch.autograd.grad(function(x, target), x, create_graph=True)
        penalties += torch.autograd.grad(gradient.square().sum(), x)
    torch.testing.assert_close(penalties[0], penalties[1], rtol=0, atol=16 * torch.finfo(torch.float64).eps)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_second_gradient_of_nll_loss_is_zero(reduction, device):
    """The loss is linear in its input; still its gradient can be differentiated, as torch's can."""
    input, target = sample(NLL_LOSS, (6, 5), torch.float64, device)
    x = leaf(input)
    (gradient,) = torch.autograd.grad(NLL_LOSS.ours(x, target, reduction=reduction).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert torch.equal(second, torch.zeros_like(input))


@pytest.mark.parametrize("target_dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", [CROSS_ENTROPY, BINARY_CROSS_ENTROPY_WITH_LOGITS], ids=repr)
def test_the_derivative_for_a_learned_scale_of_a_float16_loss(loss, reduction, target_dtype, device):
    """Products of small gradients would be 0 in float16."""
    shape = (64, 1000)
    input = sample_input(loss, shape, torch.float16, device)
    target = sample_class_probabilities(shape, target_dtype, device).to(target_dtype)

    def penalty(dtype):
        x, scale = leaf(input.to(dtype)), torch.ones((), dtype=torch.float64, device=device, requires_grad=True)
        y = target.double() if dtype == torch.float64 else target
        function = loss.torchs if dtype == torch.float64 else loss.ours
        value = function(x, y, reduction=reduction).double() * scale
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        return torch.autograd.grad(gradient.double().square().sum(), scale)[0]

    torch.testing.assert_close(penalty(torch.float16), penalty(torch.float64), rtol=2e-2, atol=0)


def test_second_derivatives_of_a_float16_mean_in_a_small_direction(device):
    """The direction divided by the number of elements would be 0 in float16."""

    def second(function, dtype):
        probabilities = leaf(torch.linspace(2e-3, 4e-3, 20_000, device=device).half().to(dtype))
        loss = function(probabilities, torch.ones_like(probabilities))
        (gradient,) = torch.autograd.grad(loss, probabilities, create_graph=True)
        return torch.autograd.grad(gradient, probabilities, torch.full_like(gradient, 1e-5))[0].double()

    ours, exact = second(BINARY_CROSS_ENTROPY.ours, torch.float16), second(BINARY_CROSS_ENTROPY.torchs, torch.float64)
    torch.testing.assert_close(ours, exact, rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_graph_of_a_backward_is_not_made_by_the_library(loss, device):
    """torch.library's functions take a tenth of a millisecond a call, which is what a small loss takes."""
    input, target = sample(loss, device=device)
    x = leaf(input)
    (gradient,) = torch.autograd.grad(loss.ours(x, target), x, create_graph=True)
    assert gradient.requires_grad and "Generated" not in type(gradient.grad_fn).__name__


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, t: cross_entropy(x, t, reduction="none"),
        lambda x, t: cross_entropy(x, t, softcap=3.0, reduction="none"),
        lambda x, t: token_statistics(x, t).log_prob,
        lambda x, t: token_statistics(x, t).entropy,
        lambda x, t: sigmoid_focal_loss(x, x.detach().sigmoid()).sum(1),
        lambda x, t: BINARY_CROSS_ENTROPY_WITH_LOGITS.ours(x, x.detach().sigmoid(), reduction="none").sum(1),
    ],
    ids=["none", "softcap", "log_prob", "entropy", "focal", "with_logits"],
)
def test_batched_gradients_have_second_derivatives(function, watched, device):
    x = torch.randn(4, 3, dtype=torch.float64, device=device, requires_grad=True)
    target = torch.tensor([0, 1, 2, 0], device=device)
    grad_outputs = torch.randn(2, 4, dtype=torch.float64, device=device)
    with FlopCounterMode(display=False) if watched else nullcontext():
        losses = function(x, target)
    (batched,) = torch.autograd.grad(losses, x, grad_outputs, is_grads_batched=True, create_graph=True)
    each = torch.stack([torch.autograd.grad(losses, x, grad, create_graph=True)[0] for grad in grad_outputs])
    second = [torch.autograd.grad(gradient.square().sum(), x, retain_graph=True)[0] for gradient in (batched, each)]
    torch.testing.assert_close(*second)
