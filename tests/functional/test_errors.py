"""Bad calls: ours raises what torch raises, with torch's message, and leaves the arguments as they were."""

import re

import pytest
import torch
import torch_abilities
from bad_calls import BAD_CALLS
from losses import BINARY_CROSS_ENTROPY, BINARY_LOSSES, CLASS_LOSSES, CROSS_ENTROPY, LOSSES, NLL_LOSS, sample

import fused_losses
from fused_losses import _ops


def error_of(function, positional, options):
    with pytest.raises(Exception) as caught:
        function(*positional, **options)
    return caught.value


@pytest.mark.parametrize("requires_grad", [False, True], ids=["no grad", "grad"])
@pytest.mark.parametrize("bad_call", BAD_CALLS, ids=lambda bad_call: bad_call.description)
def test_the_error_is_torchs(bad_call, requires_grad):
    positional, options = bad_call.arguments()
    tensors = [value for value in (*positional, *options.values()) if torch.is_tensor(value)]
    if tensors and tensors[0] is positional[0] and tensors[0].is_floating_point():
        tensors[0].requires_grad_(requires_grad)
    before = [(tensor.clone(), tensor._version) for tensor in tensors]
    torchs = error_of(bad_call.loss.torchs, positional, options)
    ours = error_of(bad_call.loss.ours, positional, options)
    assert type(ours) is type(torchs)
    assert str(ours) == str(torchs)
    for tensor, (values, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, values)
        assert tensor._version == version


# Rows of few and of many classes, enough rows for two threads, a strided class axis, images.
SHAPES = [(5,), (4, 5), (70_000, 5), (3, 5000), (2, 5, 40), (2, 5, 8, 9), (2, 5, 2, 3, 2)]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["no grad", "grad"])
@pytest.mark.parametrize("place", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_an_index_out_of_range_is_named(loss, shape, place, requires_grad, reduction, capfd):
    input, target = sample(loss, shape)
    num_classes = shape[0] if len(shape) == 1 else shape[1]
    input.requires_grad_(requires_grad)
    for index in (num_classes, -1, num_classes + 2**40, -(2**63)):
        target.view(-1)[place] = index
        with pytest.raises(IndexError, match=f"Target {index} is out of bounds"):
            loss.torchs(input, target, reduction=reduction)
        with pytest.raises(IndexError) as caught:
            loss.ours(input, target, reduction=reduction)
        assert str(caught.value) == f"Target {index} is out of bounds."
    assert capfd.readouterr().err == ""  # nothing printed by a thread of the pool


@pytest.mark.parametrize("index_dtype", [torch.uint8, torch.int32], ids=str)
@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_an_index_out_of_range_of_another_integer_type_is_named(loss, index_dtype):
    input, target = sample(loss, (4, 5))
    target[2] = 200
    with pytest.raises(IndexError, match=re.escape("Target 200 is out of bounds.")):
        loss.ours(input, target.to(index_dtype))


def test_an_index_out_of_range_is_named_with_weight_and_smoothing():
    logits, target = sample(CROSS_ENTROPY, (4, 5))
    target[3] = 5
    for options in ({"weight": torch.ones(5)}, {"label_smoothing": 0.1}, {"ignore_index": 4}):
        with pytest.raises(IndexError, match=re.escape("Target 5 is out of bounds.")):
            CROSS_ENTROPY.ours(logits, target, **options)


@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_no_class_at_all_makes_every_index_out_of_range(loss):
    input, target = torch.randn(3, 0), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(IndexError) as torchs:
        loss.torchs(input, target)
    with pytest.raises(IndexError, match=re.escape(str(torchs.value))):
        loss.ours(input, target)


def test_an_ignored_index_is_not_out_of_range():
    logits, target = sample(CROSS_ENTROPY, (4, 5))
    target[1] = 5
    losses = CROSS_ENTROPY.ours(logits, target, ignore_index=5, reduction="none")
    assert losses[1] == 0
    assert (losses[[0, 2, 3]] > 0).all()


@pytest.mark.parametrize("which", ["input", "target"])
@pytest.mark.parametrize("value", [1.0001, -1e-6, torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("num_elements", [1, 35, 100_000])  # in a tail, behind a vector, in the second thread's part
@pytest.mark.parametrize("label", [0.5, 1.0])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["no grad", "grad"])
def test_probabilities_out_of_range(num_elements, value, which, label, requires_grad, capfd):
    arguments = {"input": torch.full((num_elements,), 0.5), "target": torch.full((num_elements,), label)}
    arguments[which][-1] = value
    arguments["input"].requires_grad_(requires_grad)
    torchs = error_of(BINARY_CROSS_ENTROPY.torchs, (), arguments)
    ours = error_of(BINARY_CROSS_ENTROPY.ours, (), arguments)
    assert type(ours) is type(torchs) is RuntimeError
    assert str(ours) == str(torchs) == f"all elements of {which} should be between 0 and 1"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_call_after_a_failed_one_is_not_affected(loss):
    input, target = sample(loss, (64, 33))
    before = loss.ours(input, target, reduction="none")
    for _ in range(3):
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            loss.ours(input, target + 50 if loss.by_class else target[:1])
    assert torch.equal(loss.ours(input, target, reduction="none"), before)


@pytest.mark.parametrize("loss", BINARY_LOSSES, ids=repr)
def test_tensors_on_different_devices(loss, device):
    other = torch.rand(4, 5, device="meta" if device == "cpu" else "cpu")
    input = torch.rand(4, 5, device=device)
    torchs = error_of(loss.torchs, (input, other), {})
    assert type(error_of(loss.ours, (input, other), {})) is type(torchs)


@pytest.mark.parametrize("num_classes", [2**45, 2**61 + 2**17], ids=["too many bytes", "no number of bytes"])
def test_memory_that_cannot_be_had_is_torchs_error(num_classes):
    input = torch.zeros(1, 1, 2, requires_grad=True).expand(1, num_classes, 2)

    def gradient(loss):
        return torch.autograd.grad(loss(input, torch.tensor([[5, 3]]), reduction="sum"), input)

    errors = [error_of(gradient, (loss,), {}) for loss in (NLL_LOSS.torchs, NLL_LOSS.ours)]
    assert type(errors[0]) is type(errors[1]) is RuntimeError
    if torch_abilities.says_what_an_error_was():
        assert str(errors[1]).startswith(str(errors[0]))  # ours may say the strides besides


def test_more_classes_than_a_kernel_counts_along_a_strided_axis():
    logits = torch.zeros(1, 1, 2).expand(1, 2**31, 2)
    words = fused_losses.explain(CROSS_ENTROPY.ours, logits, torch.zeros(1, 2, dtype=torch.int64))
    assert words == "torch's own cross_entropy: there are 2^31 classes and more along a strided axis"
    with pytest.raises(RuntimeError, match=r"2\^31 classes and more along a strided axis"):
        _ops.cross_entropy_forward(logits, torch.zeros(1, 2, dtype=torch.int64), None, 1, -100, 0.0, False)
