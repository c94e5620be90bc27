"""Activation checkpointing, saved-tensor hooks and tensor hooks around a loss."""

import pytest
import torch
from losses import CROSS_ENTROPY, LOSSES, REDUCTIONS, sample
from parity import run
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointError, checkpoint

from fused_losses.functional import cross_entropy, sigmoid_focal_loss, token_statistics

BEYOND_TORCH = {
    "terms": lambda logits, target: cross_entropy(logits, target, softcap=5.0, focal_gamma=2.0),
    "token weights": lambda logits, target: cross_entropy(logits, target, token_weight=logits[:, 0].sigmoid()),
    "probabilities": lambda logits, target: cross_entropy(logits, logits.detach().softmax(1).requires_grad_()),
    "focal loss": lambda logits, target: sigmoid_focal_loss(logits, logits.detach().sigmoid()),
    "statistics": lambda logits, target: token_statistics(logits, target).entropy,
    "two statistics": lambda logits, target: (
        token_statistics(logits, target).log_prob * token_statistics(logits, target).log_sum_exp
    ),
}


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_checkpointed_loss(loss, reduction, use_reentrant, device):
    input, target = sample(loss, (6, 5), device=device)
    expected = run(loss.ours, input, target, reduction=reduction)
    leaf = input.requires_grad_()
    value = checkpoint(lambda x: loss.ours(x * 1, target, reduction=reduction), leaf, use_reentrant=use_reentrant)
    value.sum().backward()
    assert torch.equal(value, expected.loss)
    assert torch.equal(leaf.grad, expected.gradient)


def test_a_checkpoint_computed_again_outside_of_a_mode_is_an_error_and_no_wrong_gradient(device):
    """Torch's own loss, which the mode is given, and the fused one save other tensors: the checkpoint must see it."""

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    logits, _ = sample(CROSS_ENTROPY, (6, 5), device=device)
    logits.requires_grad_()
    probabilities = logits.detach().softmax(1)
    for context in (None, lambda: (Mode(), Mode())):
        options = {} if context is None else {"context_fn": context}
        with Mode():
            loss = checkpoint(lambda x: cross_entropy(x, probabilities.flip(0)), logits, use_reentrant=False, **options)
        if context is None:
            with pytest.raises(CheckpointError):
                loss.backward()
        else:
            loss.backward()
            expected = run(CROSS_ENTROPY.torchs, logits, probabilities.flip(0))
            torch.testing.assert_close(logits.grad, expected.gradient)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_saved_tensors_moved_to_the_cpu(loss, reduction, device):
    input, target = sample(loss, (6, 5), device=device)
    expected = run(loss.ours, input, target, reduction=reduction)
    with save_on_cpu():
        outcome = run(loss.ours, input, target, reduction=reduction)
    assert torch.equal(outcome.loss, expected.loss)
    assert torch.equal(outcome.gradient, expected.gradient)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_what_a_loss_saves_passes_through_the_hooks(loss, reduction, device):
    """Tensors kept past autograd's back, as attributes of ctx, would be neither offloaded nor freed."""
    input, target = sample(loss, (6, 5), device=device)
    packed_shapes, unpacked_shapes = [], []

    def pack(tensor):
        packed_shapes.append(tensor.shape)
        return tensor.clone()

    def unpack(packed):
        unpacked_shapes.append(packed.shape)
        return packed

    with saved_tensors_hooks(pack, unpack):
        outcome = run(loss.ours, input, target, reduction=reduction)
    expected = run(loss.ours, input, target, reduction=reduction)
    assert packed_shapes and unpacked_shapes
    assert torch.equal(outcome.gradient, expected.gradient)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_hooks_that_change_strides(loss, device):
    """Torch asks of them the same values and sizes alone."""
    leaf, target = sample(loss, (6, 5), device=device)
    leaf.requires_grad_()
    gradients = []
    for unpack in (lambda tensor: tensor, lambda tensor: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor):
        for reduction in REDUCTIONS:
            with saved_tensors_hooks(lambda tensor: tensor, unpack):
                value = loss.ours(leaf, target, reduction=reduction)
            gradients.append(torch.autograd.grad(value.sum(), leaf)[0])
    torch.testing.assert_close(gradients[:3], gradients[3:])


@pytest.mark.parametrize("name", BEYOND_TORCH)
def test_a_second_derivative_where_saved_tensors_pass_through_hooks(name, device):
    """A transform, which those formulas are differentiated by elsewhere, refuses to run there."""
    logits, target = sample(CROSS_ENTROPY, (6, 5), torch.float64, device=device)
    logits.requires_grad_()

    def second_derivative():
        (gradient,) = torch.autograd.grad(BEYOND_TORCH[name](logits, target).sum(), logits, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), logits)[0]

    expected = second_derivative()
    with save_on_cpu():
        assert torch.equal(second_derivative(), expected)


class PackedTensor:
    num_alive = 0

    def __init__(self, tensor):
        self.tensor = tensor
        PackedTensor.num_alive += 1

    def __del__(self):
        PackedTensor.num_alive -= 1


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_saved_tensors_are_released_by_the_backward(loss, device):
    """Even while the loss itself is kept, as a list of losses for a plot does."""
    input, target = sample(loss, (6, 5), device=device)
    with saved_tensors_hooks(PackedTensor, lambda packed: packed.tensor):
        value = loss.ours(input.requires_grad_(), target)
        assert PackedTensor.num_alive > 0
        value.backward()
    assert PackedTensor.num_alive == 0
    assert value.isfinite()


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_hook_on_the_input_edits_its_gradient(loss, device):
    input, target = sample(loss, (6, 5), device=device)
    expected = run(loss.ours, input, target).gradient
    leaf = input.requires_grad_()
    leaf.register_hook(lambda gradient: gradient * 2)
    loss.ours(leaf, target).backward()
    assert torch.equal(leaf.grad, expected * 2)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_hook_on_the_loss_scales_the_gradient(loss, reduction, device):
    input, target = sample(loss, (6, 5), device=device)
    expected = run(loss.ours, input, target, reduction=reduction).gradient
    leaf = input.requires_grad_()
    value = loss.ours(leaf, target, reduction=reduction)
    value.register_hook(lambda gradient: gradient * 4)
    value.sum().backward()
    assert torch.equal(leaf.grad, expected * 4)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_post_accumulate_hook_may_free_the_gradient(loss, device):
    """Optimizers that step inside the backward set .grad to None there."""
    input, target = sample(loss, (6, 5), device=device)
    expected = run(loss.ours, input, target).gradient
    seen = []

    def step(parameter):
        seen.append(parameter.grad.clone())
        parameter.grad = None

    leaf = input.requires_grad_()
    leaf.register_post_accumulate_grad_hook(step)
    for _ in range(2):
        loss.ours(leaf, target).backward()
    assert len(seen) == 2
    assert all(torch.equal(gradient, expected) for gradient in seen)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_anomaly_mode_is_silent_for_finite_gradients(loss, device):
    input, target = sample(loss, (6, 5), device=device)
    with torch.autograd.detect_anomaly(check_nan=True):
        outcome = run(loss.ours, input, target)
    assert outcome.gradient.isfinite().all()


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled", "ignore:Error detected in")
def test_anomaly_mode_finds_the_nan_of_a_loss(device):
    logits, target = sample(CROSS_ENTROPY, (6, 5), device=device)
    logits[3] = torch.inf
    with torch.autograd.detect_anomaly(check_nan=True), pytest.raises(RuntimeError, match="returned nan values"):
        run(CROSS_ENTROPY.ours, logits, target)
