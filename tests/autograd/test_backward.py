"""One graph used in every way a training loop may use it: twice, for two losses, under hooks, with edited inputs."""

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from losses import (
    BINARY_CROSS_ENTROPY_WITH_LOGITS,
    BINARY_LOSSES,
    CLASS_LOSSES,
    CROSS_ENTROPY,
    LOSSES,
    NLL_LOSS,
    REDUCTIONS,
    sample,
)
from parity import run
from torch.utils.flop_counter import FlopCounterMode

import fused_losses

# Rows of few classes, of many, and a strided class axis: each may save something else for the backward.
SHAPES = [(6, 5), (3, 300), (2, 5, 4, 7)]


def for_every_loss_reduction_and_shape(test):
    test = pytest.mark.parametrize("loss", LOSSES, ids=repr)(test)
    test = pytest.mark.parametrize("reduction", REDUCTIONS)(test)
    return pytest.mark.parametrize("shape", SHAPES, ids=str)(test)


def leaf_and_loss(loss, shape, reduction, device="cpu"):
    input, target = sample(loss, shape, device=device)
    input.requires_grad_()
    return input, target, loss.ours(input, target, reduction=reduction)


@for_every_loss_reduction_and_shape
def test_second_backward_through_a_retained_graph(loss, reduction, shape, device):
    input, _, value = leaf_and_loss(loss, shape, reduction, device)
    grad_output = torch.rand_like(value)
    (first,) = torch.autograd.grad(value, input, grad_output, retain_graph=True)
    as_it_was = first.clone()
    first.fill_(torch.nan)  # as an optimizer that works in place on .grad may
    (second,) = torch.autograd.grad(value, input, grad_output, retain_graph=True)
    assert torch.equal(second, as_it_was)
    (third,) = torch.autograd.grad(value, input, 2 * grad_output)
    assert torch.equal(third, 2 * as_it_was)


@for_every_loss_reduction_and_shape
def test_second_backward_through_a_freed_graph_raises(loss, reduction, shape, device):
    input, _, value = leaf_and_loss(loss, shape, reduction, device)
    torch.autograd.grad(value.sum(), input)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(value, input, torch.ones_like(value))


@for_every_loss_reduction_and_shape
def test_two_losses_of_one_input_add_their_gradients(loss, reduction, shape, device):
    input, target = sample(loss, shape, device=device)
    other_target = target.flip(0)
    expected = run(loss.ours, input, target, reduction=reduction).gradient
    expected = expected + run(loss.ours, input, other_target, reduction=reduction).gradient
    input.requires_grad_()
    values = [loss.ours(input, labels, reduction=reduction) for labels in (target, other_target)]
    sum(value.sum() for value in values).backward()
    assert torch.equal(input.grad, expected)


@for_every_loss_reduction_and_shape
def test_arguments_and_their_versions_are_unchanged(loss, reduction, shape, device):
    input, target = sample(loss, shape, device=device)
    weight = 0.5 + torch.rand(shape[1] if loss.by_class else shape[-1], device=device)
    tensors = [input.requires_grad_(), target, weight]
    before = [(tensor.detach().clone(), tensor._version) for tensor in tensors]
    value = loss.ours(input, target, weight=weight, reduction=reduction)
    value.sum().backward()
    for tensor, (values, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, values)
        assert tensor._version == version


@for_every_loss_reduction_and_shape
def test_gradient_is_new_memory(loss, reduction, shape, device):
    input, target, value = leaf_and_loss(loss, shape, reduction, device)
    (gradient,) = torch.autograd.grad(value.sum(), input)
    for tensor in (input, target):
        assert gradient.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


@for_every_loss_reduction_and_shape
def test_backward_accumulates_into_grad(loss, reduction, shape, device):
    input, target, value = leaf_and_loss(loss, shape, reduction, device)
    value.sum().backward()
    once = input.grad.clone()
    loss.ours(input, target, reduction=reduction).sum().backward()
    assert torch.equal(input.grad, 2 * once)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@for_every_loss_reduction_and_shape
def test_without_gradient_the_value_is_the_same(loss, reduction, shape, guard, device):
    input, target, with_graph = leaf_and_loss(loss, shape, reduction, device)
    with guard():
        without = loss.ours(input, target, reduction=reduction)
    assert not without.requires_grad and without.grad_fn is None
    assert without.is_inference() == (guard is torch.inference_mode)
    of_detached = loss.ours(input.detach(), target, reduction=reduction)
    assert of_detached.grad_fn is None
    few_roundings = 4 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(without, with_graph.detach(), rtol=few_roundings, atol=few_roundings)
    assert torch.equal(without, of_detached)


@for_every_loss_reduction_and_shape
def test_gradients_enabled_inside_of_inference_mode(loss, reduction, shape, device):
    """As code does that computes forces, or a metric by gradients: there is no graph, and no error of a missing one."""
    input, target = sample(loss, shape, device=device)
    input.requires_grad_()
    with torch.inference_mode(), torch.enable_grad():
        value = loss.ours(input, target.clone(), reduction=reduction)
    assert not value.requires_grad and value.is_inference()
    assert torch.equal(value, loss.ours(input.detach(), target, reduction=reduction))


@for_every_loss_reduction_and_shape
def test_an_inference_tensor_as_input(loss, reduction, shape, device):
    with torch.inference_mode():
        input, target = sample(loss, shape, device=device)
        inside = loss.ours(input, target, reduction=reduction)
    assert torch.equal(loss.ours(input.clone(), target.clone(), reduction=reduction), inside)


@pytest.mark.parametrize("below_a_mode", [False, True])
@pytest.mark.parametrize("options", [{}, {"softcap": 9.0}, {"weight": torch.ones(5)}], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_teachers_probabilities(smoothing, options, below_a_mode, device):
    """Made in inference mode, whose tensors autograd does not save. Torch saves the smoothed ones, if there are any."""
    with torch.inference_mode():
        target = torch.rand(4, 5, device=device).softmax(1)
    options = {key: it.to(device) if isinstance(it, torch.Tensor) else it for key, it in options.items()}
    gradients = []
    for of in (target, target.clone()):
        logits = torch.arange(20.0, device=device).view(4, 5).sin().requires_grad_()
        with FlopCounterMode(display=False) if below_a_mode else nullcontext():
            call = partial(fused_losses.functional.cross_entropy, logits, of, label_smoothing=smoothing, **options)
            if of is target and not smoothing:
                with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
                    call()
                return
            gradients.append(torch.autograd.grad(call(), logits)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_logits_overwritten_after_the_forward(reduction, shape, dtype, device):
    """Torch's cross_entropy saves no logits: they may be overwritten, and the gradient is that of the old ones."""
    logits, target = sample(CROSS_ENTROPY, shape, dtype, device)
    expected = run(CROSS_ENTROPY.ours, logits, target, reduction=reduction).gradient
    leaf = logits.clone().requires_grad_()
    activation = leaf * 1
    value = CROSS_ENTROPY.ours(activation, target, reduction=reduction)
    activation.detach().fill_(3)  # which the version counter of `activation` counts
    value.backward()
    assert torch.equal(leaf.grad, expected)


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, *BINARY_LOSSES], ids=repr)
@pytest.mark.parametrize("scale", [1e-6, 1 / 1024, 65536.0])
def test_a_scaled_float16_loss_of_overwritten_input_is_an_error(loss, scale, device):
    """Multiplied, its subnormal numbers would be wrong; whatever was prepared after the losses before."""
    input, target = sample(loss, (1024, 128) if device == "cpu" else (32, 10), torch.float16, device)
    leaf = input.clone().requires_grad_()
    (loss.ours(leaf, target) * scale).backward()
    for factor in (1.0, scale):
        leaf = input.clone().requires_grad_()
        activation = leaf * 1
        value = loss.ours(activation, target) * factor
        activation.detach().fill_(0.5)
        try:
            value.backward()
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
        else:
            expected = run(loss.ours, input, target, torch.tensor(factor, dtype=value.dtype, device=device)).gradient
            assert torch.equal(leaf.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_overwritten_before_the_backward_of_a_scaled_loss(dtype, device):
    """A 16-bit gradient cannot be computed anew then; it is scaled, and rounded a second time."""
    logits, target = sample(CROSS_ENTROPY, (6, 5), dtype, device)
    expected = run(CROSS_ENTROPY.ours, logits, target, torch.tensor(3.0, device=device)).gradient
    leaf = logits.clone().requires_grad_()
    value = CROSS_ENTROPY.ours(leaf, target) * 3
    with torch.no_grad():
        leaf.fill_(3)
    value.backward()
    info = torch.finfo(dtype)
    smallest_number = info.smallest_normal * info.eps
    torch.testing.assert_close(leaf.grad, expected, rtol=2 * info.eps, atol=2 * smallest_number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grad_output", [math.inf, -math.inf, math.nan])
def test_overwritten_logits_and_a_grad_output_that_is_not_finite(grad_output, dtype, device):
    """Rows that do not count have zeros, as torch's have, not 0 times infinity."""
    logits, target = sample(CROSS_ENTROPY, (6, 5), dtype, device)
    target[[1, 4]] = -100
    for function in (CROSS_ENTROPY.ours, CROSS_ENTROPY.torchs):
        leaf = logits.clone().requires_grad_()
        value = function(leaf, target)
        with torch.no_grad():
            leaf.fill_(3)
        value.backward(torch.full_like(value, grad_output))
        counts = target != -100
        assert (leaf.grad[~counts] == 0).all() and not leaf.grad[counts].isfinite().any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_a_batch_of_grad_outputs_that_are_not_finite(loss, reduction, device):
    input, target = sample(loss, (6, 5), device=device)
    target[[1, 4]] = -100
    leaf = input.requires_grad_()
    value = loss.ours(leaf, target, reduction=reduction)
    batch = torch.full((2, *value.shape), math.inf, dtype=value.dtype, device=device)
    (gradients,) = torch.autograd.grad(value, leaf, batch, is_grads_batched=True)
    assert (gradients[:, target == -100] == 0).all()


def test_a_batch_for_weights_of_tokens_where_no_row_counts(device):
    """The mean divides by 0."""
    logits, target = sample(CROSS_ENTROPY, (4, 3), device=device)
    target.fill_(-100)
    leaf = logits.requires_grad_()
    value = CROSS_ENTROPY.ours(leaf, target, token_weight=torch.ones(4, device=device))
    batch = torch.tensor([1.0, -2.0], device=device)
    (gradients,) = torch.autograd.grad(value, leaf, batch, is_grads_batched=True)
    assert torch.equal(gradients, torch.zeros_like(gradients))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_freed_storage_is_an_error(loss, device):
    """Of the input before the call, and between the call and its backward."""
    for is_backward in (False, True):
        input, target = sample(loss, (6, 5), device=device)
        leaf = input.clone().requires_grad_()
        activation = leaf * 1
        losses = loss.ours(activation, target, reduction="none") if is_backward else None
        activation.untyped_storage().resize_(4)
        if losses is None:
            with pytest.raises(RuntimeError, match="storage"):
                loss.ours(activation, target)
        elif loss is not NLL_LOSS:  # whose backward reads no input
            with pytest.raises(RuntimeError, match="storage"):
                losses.sum().backward()


def test_a_sparse_grad_output(device):
    """Of a gather() with sparse_grad=True."""
    gradients = []
    for function in (BINARY_CROSS_ENTROPY_WITH_LOGITS.ours, BINARY_CROSS_ENTROPY_WITH_LOGITS.torchs):
        torch.manual_seed(0)
        logits, target = sample(BINARY_CROSS_ENTROPY_WITH_LOGITS, (6, 5), device=device)
        leaf = logits.requires_grad_()
        picked = torch.tensor([[1], [0], [4], [2], [2], [0]], device=device)
        torch.gather(function(leaf, target, reduction="none"), 1, picked, sparse_grad=True).sum().backward()
        gradients.append(leaf.grad.to_dense())
    torch.testing.assert_close(*gradients)


@for_every_loss_reduction_and_shape
def test_an_overwritten_input_never_gives_a_wrong_gradient(loss, reduction, shape, device):
    """What a loss saves may not be edited before the backward; autograd notices, or the edit does not matter."""
    input, target = sample(loss, shape, device=device)
    expected = run(loss.ours, input, target, reduction=reduction).gradient
    for edited in ("input", "target"):
        leaf, labels = input.clone().requires_grad_(), target.clone()
        activation = leaf * 1
        value = loss.ours(activation, labels, reduction=reduction)
        with torch.no_grad():
            (activation if edited == "input" else labels).zero_()
        try:
            value.sum().backward()
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
        else:
            assert torch.equal(leaf.grad, expected)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_gradient_reaches_the_layers_before(loss, device):
    features, target = torch.randn(16, 12, device=device), sample(loss, (16, 5), device=device)[1]
    gradients = []
    for function in (loss.ours, loss.torchs):
        torch.manual_seed(1)
        layer = torch.nn.Linear(12, 5, device=device)
        output = layer(features)
        output = output.sigmoid() if loss.name == "binary_cross_entropy" else output
        function(output, target).backward()
        gradients.append([layer.weight.grad, layer.bias.grad])
    sums_of_16_rows = 16 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(gradients[0], gradients[1], rtol=sums_of_16_rows, atol=sums_of_16_rows)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_retain_grad_of_an_activation_and_of_the_loss(loss, device):
    leaf, target = sample(loss, (6, 5), device=device)
    activation = leaf.requires_grad_() * 1
    activation.retain_grad()
    value = loss.ours(activation, target)
    value.retain_grad()
    (3 * value).backward()
    assert value.grad == 3
    assert torch.equal(activation.grad, leaf.grad)
    expected = run(loss.ours, leaf, target, torch.tensor(3.0, device=device)).gradient
    assert torch.equal(leaf.grad, expected)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_loss_that_is_not_used_has_no_gradient(loss, device):
    input, target = sample(loss, (6, 5), device=device)
    activation = input.requires_grad_() * 1
    value = loss.ours(activation, target)
    (2 * activation).sum().backward()
    assert torch.equal(input.grad, torch.full_like(input, 2))
    assert value.requires_grad


@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_target_and_weight_without_gradient_get_none(loss, device):
    input, target = sample(loss, (6, 5), device=device)
    weight = torch.rand(5, device=device)
    loss.ours(input.requires_grad_(), target, weight=weight).backward()
    assert input.grad is not None and weight.grad is None
