"""Gradients with respect to targets and weights: torch's own, and torch's own refusal where it has none."""

import pytest
import torch
from losses import (
    BINARY_CROSS_ENTROPY,
    BINARY_CROSS_ENTROPY_WITH_LOGITS,
    CROSS_ENTROPY,
    NLL_LOSS,
    REDUCTIONS,
    sample,
    sample_class_probabilities,
)

# The loss, whether its target is class probabilities, and the arguments that want a gradient.
CASES = [
    (CROSS_ENTROPY, True, ["target"]),
    (CROSS_ENTROPY, True, ["input", "target"]),
    (CROSS_ENTROPY, True, ["weight"]),
    (CROSS_ENTROPY, True, ["input", "target", "weight"]),
    (CROSS_ENTROPY, False, ["weight"]),
    (CROSS_ENTROPY, False, ["input", "weight"]),
    (NLL_LOSS, False, ["weight"]),
    (NLL_LOSS, False, ["input", "weight"]),
    (BINARY_CROSS_ENTROPY, False, ["target"]),
    (BINARY_CROSS_ENTROPY, False, ["input", "target"]),
    (BINARY_CROSS_ENTROPY, False, ["weight"]),
    (BINARY_CROSS_ENTROPY_WITH_LOGITS, False, ["target"]),
    (BINARY_CROSS_ENTROPY_WITH_LOGITS, False, ["input", "target"]),
    (BINARY_CROSS_ENTROPY_WITH_LOGITS, False, ["weight"]),
    (BINARY_CROSS_ENTROPY_WITH_LOGITS, False, ["pos_weight"]),
    (BINARY_CROSS_ENTROPY_WITH_LOGITS, False, ["input", "pos_weight"]),
]


def arguments_of(loss, probabilities, differentiable, device):
    torch.manual_seed(2)
    input, target = sample(loss, (6, 5), device=device)
    target = sample_class_probabilities((6, 5), device=device) if probabilities else target
    arguments = {"input": input, "target": target, "weight": 0.5 + torch.rand(5, device=device)}
    if loss is BINARY_CROSS_ENTROPY_WITH_LOGITS:
        arguments["pos_weight"] = 0.5 + torch.rand(5, device=device)
    for name in differentiable:
        arguments[name].requires_grad_()
    return arguments


def gradients_or_refusal(function, arguments, differentiable, reduction):
    try:
        value = function(**arguments, reduction=reduction)
        return torch.autograd.grad(value.sum(), [arguments[name] for name in differentiable])
    except RuntimeError as error:
        return str(error)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("loss", "probabilities", "differentiable"), CASES, ids=str)
def test_gradient_or_refusal_is_torchs(loss, probabilities, differentiable, reduction, device):
    ours, torchs = (
        gradients_or_refusal(
            function, arguments_of(loss, probabilities, differentiable, device), differentiable, reduction
        )
        for function in (loss.ours, loss.torchs)
    )
    if isinstance(torchs, str):
        assert ours == torchs
        assert "not differentiable" in torchs
    else:
        torch.testing.assert_close(ours, torchs, rtol=0, atol=4 * torch.finfo(torch.float32).eps)


def test_without_grad_mode_a_weight_that_wants_a_gradient_is_accepted(device):
    for loss in (CROSS_ENTROPY, NLL_LOSS, BINARY_CROSS_ENTROPY, BINARY_CROSS_ENTROPY_WITH_LOGITS):
        arguments = arguments_of(loss, False, ["input", "weight"], device)
        with torch.no_grad():
            ours, torchs = loss.ours(**arguments), loss.torchs(**arguments)
        torch.testing.assert_close(ours, torchs, rtol=4 * torch.finfo(torch.float32).eps, atol=0)
