"""What cross_entropy and the functions beside it refuse of the options beyond torch's, and with which error."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

import fused_losses
from fused_losses.functional import cross_entropy


def problem(shape):
    return torch.randn(shape), torch.randint(shape[1], shape[:1])


@pytest.mark.parametrize(
    "options",
    [
        {"softcap": 0.0},
        {"softcap": float("inf")},
        {"logit_scale": 0.0},
        {"logit_scale": float("nan")},
        {"lse_square_scale": float("inf")},
        {"focal_gamma": -1.0},
        {"focal_gamma": 2.0, "label_smoothing": 0.1},
        {"token_weight": torch.ones(3)},
        {"softcap": 3.0, "reduction": "average"},
    ],
    ids=str,
)
def test_bad_options(options):
    logits, target = problem((20, 300))
    with pytest.raises(ValueError):
        cross_entropy(logits, target, **options)


def test_bad_targets():
    logits, target = problem((20, 300))
    target[3] = 300
    for terms in ({"softcap": 3.0}, {"token_weight": torch.ones(20)}):
        with pytest.raises(IndexError):
            cross_entropy(logits, target, **terms)


@pytest.mark.parametrize("value", [0.0, 1.0, 2.0])  # also where it is equal to a default
def test_a_scale_that_is_to_be_learned_is_refused(value):
    """Its gradient would be lost without a word."""
    logits, target = problem((20, 300))
    functions = {
        cross_entropy: ("logit_scale", "softcap", "lse_square_scale", "focal_gamma"),
        fused_losses.functional.token_statistics: ("logit_scale", "softcap"),
        partial(fused_losses.functional.linear_cross_entropy, logits @ torch.randn(300, 7), torch.randn(300, 7)): (
            "logit_scale",
            "softcap",
            "lse_square_scale",
        ),
    }
    for function, options in functions.items():
        tensors = (target,) if isinstance(function, partial) else (logits, target)
        for option in options:
            with pytest.raises(TypeError, match="learned"):
                function(*tensors, **{option: torch.nn.Parameter(torch.tensor(value))})


@pytest.mark.parametrize("terms", [{"softcap": 3.0}, {"token_weight": torch.ones(20)}], ids=["softcap", "token_weight"])
def test_types_that_torch_refuses(terms):
    logits, target = problem((20, 300))
    for other in (torch.bool, torch.int16):
        with pytest.raises(RuntimeError, match="class indices"):
            cross_entropy(logits, target.to(other), **terms)
    with pytest.raises(RuntimeError, match="class weights"):
        cross_entropy(logits, target, weight=torch.rand(300, dtype=torch.float64), **terms)


def test_probabilities_of_no_classes():
    nothing = torch.zeros(3, 0)
    assert cross_entropy(nothing, nothing, softcap=1.0).isnan() and F.cross_entropy(nothing, nothing).isnan()
