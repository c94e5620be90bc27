"""Options beyond torch's of logits that unfold() made: elements that several rows share, as logits and as positions."""

import pytest
import torch

from fused_losses.functional import cross_entropy

WINDOWS = {
    "rows": lambda dtype: torch.randn(9, dtype=dtype).unfold(0, 6, 1),
    "few rows": lambda dtype: torch.arange(6, dtype=dtype).unfold(0, 4, 1),
    "positions": lambda dtype: torch.randn(2, 20, dtype=dtype).unfold(1, 9, 1),
    "many classes": lambda dtype: torch.randn(700, dtype=dtype).unfold(0, 690, 1),
}


@pytest.mark.parametrize("by_probability", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("terms", [{"softcap": 3.0}, {"logit_scale": -1.3}, {"softcap": 2.0, "lse_square_scale": 0.1}])
@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
def test_windows_that_overlap(windows, terms, by_probability):
    """Their classes and their positions are contiguous, of the gradient only the ones or the others."""
    logits = windows(torch.float64)
    num_positions = (len(logits), *logits.shape[2:])
    target = torch.randint(logits.shape[1], num_positions)
    if by_probability:
        target = torch.rand(logits.shape, dtype=torch.float64).softmax(1)
    ours, gradient = value_and_gradient(logits, target, **terms)
    expected, expected_gradient = value_and_gradient(logits.contiguous(), target, **terms)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def value_and_gradient(logits, target, **terms):
    leaf = logits.detach().requires_grad_()
    loss = cross_entropy(leaf, target, **terms)
    return loss, torch.autograd.grad(loss, leaf)[0]
