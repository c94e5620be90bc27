"""Numbers printed in tutorials, reproduced by the function, by the module and by torch's own names while patched."""

import pytest
import torch
from losses import CROSS_ENTROPY, LOSS_BY_NAME
from published_values import (
    FOUR_ROWS,
    POINT_LABELS,
    POINT_LOGITS,
    POINT_LOGITS_PRINTED,
    PUBLISHED_VALUES,
)

import fused_losses


def call_function(loss, input, target, options):
    return loss.ours(input, target, **options)


def call_module(loss, input, target, options):
    return loss.our_module(**options)(input, target)


def call_patched_function(loss, input, target, options):
    with fused_losses.patched():
        return getattr(torch.nn.functional, loss.name)(input, target, **options)


def call_patched_module(loss, input, target, options):
    with fused_losses.patched():
        return loss.torch_module(**options)(input, target)


CALLS = [call_function, call_module, call_patched_function, call_patched_module]


def assert_prints_as(values, printed, input_precision=0.0):
    """Within two units of the last printed digit: the printed inputs were rounded too."""
    assert values.numel() == len(printed)
    for value, text in zip(values.flatten().tolist(), printed, strict=True):
        unit_of_last_digit = 10.0 ** -len(text.partition(".")[2])
        assert abs(value - float(text)) <= 2 * unit_of_last_digit + input_precision


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("published", PUBLISHED_VALUES, ids=lambda published: published.title)
def test_published_value(published, call, device):
    input = published.input.to(device).requires_grad_()
    options = {name: value.to(device) if torch.is_tensor(value) else value for name, value in published.options.items()}
    loss = call(LOSS_BY_NAME[published.loss], input, published.target.to(device), options)
    assert_prints_as(loss, published.loss_value, published.input_precision)
    if published.gradient is not None:
        (gradient,) = torch.autograd.grad(loss, input)
        assert_prints_as(gradient, published.gradient, published.input_precision)


@pytest.mark.parametrize("call", CALLS)
def test_gradient_of_logistic_regression_reaches_the_line(call, device):
    assert_prints_as(POINT_LOGITS, POINT_LOGITS_PRINTED)
    logits = POINT_LOGITS.to(device).requires_grad_()
    labels = POINT_LABELS.to(device)
    loss = call(LOSS_BY_NAME["binary_cross_entropy_with_logits"], logits, labels, {})
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, (logits.detach().sigmoid() - labels) / 6, rtol=1e-14, atol=0)


@pytest.mark.parametrize("call", CALLS)
def test_softmax_is_the_exponential_of_minus_the_losses_of_each_class(call, device):
    logits = torch.tensor([[-9.0, 5.0, 10.0]], dtype=torch.float64, device=device)
    every_class = torch.arange(3, device=device)
    losses = call(CROSS_ENTROPY, logits.expand(3, 3), every_class, {"reduction": "none"})
    for value, printed in zip((-losses).exp().tolist(), [5.5653e-09, 6.6929e-03, 9.9331e-01], strict=True):
        assert value == pytest.approx(printed, rel=2e-4 / 5.5653)


@pytest.mark.parametrize("call", CALLS)
def test_already_softmaxed_inputs_give_torchs_finite_number(call, device):
    probabilities = torch.randn(8, 5, device=device).softmax(1)
    target = torch.tensor([2, 1, 4, 2, 0, 3, 2, 0], device=device)
    torchs = CROSS_ENTROPY.torchs(probabilities, target)
    two_roundings = 2 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(call(CROSS_ENTROPY, probabilities, target, {}), torchs, rtol=two_roundings, atol=0)


def test_predicted_classes_of_the_four_rows_are_those_of_the_smallest_loss(device):
    logits = FOUR_ROWS.to(device)
    loss_of_each_class = [
        CROSS_ENTROPY.ours(logits, torch.full((4,), label, device=device), reduction="none") for label in range(5)
    ]
    assert torch.stack(loss_of_each_class).argmin(0).tolist() == [1, 0, 1, 3]
