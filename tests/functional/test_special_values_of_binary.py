"""The binary losses at infinities, NaNs and the ends of [0, 1], by table.

With infinite logits torch's loss is NaN although the true value exists: there ours is the true value, on purpose.
"""

import math

import pytest
import torch
from losses import BINARY_CROSS_ENTROPY, BINARY_CROSS_ENTROPY_WITH_LOGITS, BINARY_LOSSES, FLOAT_DTYPES, REDUCTIONS
from parity import check_parity, run

INF, NAN = torch.inf, torch.nan
EPSILON = torch.finfo(torch.float32).eps


def scalars_in_a_vector(value, num_elements, device):
    """Long enough to lie in a full vector as well as in its tail."""
    return torch.full((num_elements,), value, device=device)


# logit, target, loss, gradient, and whether torch says the same
INFINITE_LOGITS = [
    (-INF, 0.0, 0.0, 0.0, "torch: NaN"),
    (INF, 1.0, 0.0, 0.0, "torch: NaN"),
    (-INF, 1.0, INF, -1.0, "torch: NaN"),
    (-INF, 0.5, INF, -0.5, "torch: NaN"),
    (INF, 0.0, INF, 1.0, "torch: the same"),
    (INF, 0.5, INF, 0.5, "torch: the same"),
    (NAN, 0.0, NAN, NAN, "torch: the same"),
    (NAN, 1.0, NAN, NAN, "torch: the same"),
]


@pytest.mark.parametrize("pos_weight", [None, 3.0])
@pytest.mark.parametrize("num_elements", [1, 35])
@pytest.mark.parametrize(("logit", "target", "loss", "gradient", "torchs"), INFINITE_LOGITS)
def test_infinite_logits(logit, target, loss, gradient, torchs, num_elements, pos_weight, device):
    logits, labels = (scalars_in_a_vector(value, num_elements, device) for value in (logit, target))
    factor = None if pos_weight is None else torch.tensor(pos_weight, device=device)
    options = dict(pos_weight=factor, reduction="none")
    ours = run(BINARY_CROSS_ENTROPY_WITH_LOGITS.ours, logits, labels, **options)
    torch.testing.assert_close(ours.loss, torch.full_like(logits, loss), rtol=0, atol=0, equal_nan=True)
    if pos_weight is None:
        torch.testing.assert_close(ours.gradient, torch.full_like(logits, gradient), rtol=0, atol=0, equal_nan=True)
    by_torch = run(BINARY_CROSS_ENTROPY_WITH_LOGITS.torchs, logits, labels, **options)
    assert by_torch.loss.isnan().all() == (torchs == "torch: NaN" or math.isnan(loss))
    torch.testing.assert_close(ours.gradient, by_torch.gradient, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_rightly_infinite_logits_do_not_disturb_a_reduced_loss(reduction, device):
    """A mask written as -inf logits for labels of 0 adds nothing to the sum."""
    logits = torch.tensor([0.5, -INF, 2.0, INF], device=device)
    labels = torch.tensor([1.0, 0.0, 1.0, 1.0], device=device)
    finite = torch.tensor([0.5, 2.0], device=device)
    expected = (-finite.double()).exp().log1p().sum() / (4 if reduction == "mean" else 1)
    ours = BINARY_CROSS_ENTROPY_WITH_LOGITS.ours(logits, labels, reduction=reduction)
    assert ours.item() == pytest.approx(expected.item(), rel=4 * EPSILON)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("magnitude", [87.0, 104.0, 120.0, 1e4])  # exp overflows float32 at 88.7, vanishes from -87.34
def test_large_logits(magnitude, dtype, device):
    logits = torch.tensor([magnitude, magnitude, -magnitude, -magnitude], device=device, dtype=dtype)
    labels = torch.tensor([0, 1, 0, 1], device=device, dtype=dtype)
    for pos_weight in (None, torch.tensor(3.0, device=device, dtype=dtype)):
        check_parity(BINARY_CROSS_ENTROPY_WITH_LOGITS, logits, labels, pos_weight=pos_weight, reduction="none")
    losses = BINARY_CROSS_ENTROPY_WITH_LOGITS.ours(logits, labels, reduction="none")
    assert losses[[0, 3]].tolist() == [logits[0].item()] * 2
    most = math.exp(-87) * (1 + 4 * torch.finfo(torch.float32).eps)  # roundings, which the parity above holds in bounds
    assert (losses[[1, 2]] >= 0).all() and (losses[[1, 2]] <= most).all()


def test_zero_logits_of_either_sign(device):
    logits = torch.tensor([0.0, -0.0], device=device)
    ours = run(BINARY_CROSS_ENTROPY_WITH_LOGITS.ours, logits, torch.tensor([0.0, 1.0], device=device), reduction="none")
    torch.testing.assert_close(ours.loss, torch.full_like(logits, math.log(2)), rtol=2 * EPSILON, atol=0)
    assert ours.gradient.tolist() == [0.5, -0.5]


# probability, target, loss, gradient: the logarithm is clamped at -100, the gradient's denominator at 1e-12
ENDS_OF_THE_RANGE = [
    (0.0, 0.0, 0.0, 0.0),
    (0.0, 1.0, 100.0, -1e12),
    (1.0, 0.0, 100.0, 1e12),
    (1.0, 1.0, 0.0, 0.0),
    (0.0, 0.5, 50.0, -5e11),
    (1.0, 0.5, 50.0, 5e11),
    (1e-45, 1.0, 100.0, -1e12),  # the logarithm of float32's smallest number is -103.3
    (0.5, 1.0, math.log(2), -2.0),
]


@pytest.mark.parametrize("num_elements", [1, 35])
@pytest.mark.parametrize(("probability", "target", "loss", "gradient"), ENDS_OF_THE_RANGE)
def test_probabilities_at_the_ends(probability, target, loss, gradient, num_elements, device):
    input, labels = (scalars_in_a_vector(value, num_elements, device) for value in (probability, target))
    ours = run(BINARY_CROSS_ENTROPY.ours, input, labels, reduction="none")
    torch.testing.assert_close(ours.loss, torch.full_like(input, loss), rtol=2 * EPSILON, atol=0)
    torch.testing.assert_close(ours.gradient, torch.full_like(input, gradient), rtol=2 * EPSILON, atol=0)
    check_parity(BINARY_CROSS_ENTROPY, input, labels, reduction="none")


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("label", [-0.0, 0.5])
def test_negative_zero_is_in_the_range(label, dtype, device):
    input = torch.full((70,), 0.25, device=device, dtype=dtype)
    input[::5] = -0.0
    check_parity(BINARY_CROSS_ENTROPY, input, torch.full_like(input, label), reduction="none")
    check_parity(BINARY_CROSS_ENTROPY, input, torch.full_like(input, label))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_gradient_at_the_ends_overflows_only_where_the_dtype_does(dtype, device):
    input = torch.tensor([0.0, 1.0], device=device, dtype=dtype)
    gradient = run(BINARY_CROSS_ENTROPY.ours, input, 1 - input, reduction="sum").gradient
    expected = torch.tensor([-1e12, 1e12], dtype=torch.float64, device=device).to(dtype)
    # The clamp is the float32 number nearest to 1e-12, in float64 too.
    torch.testing.assert_close(gradient, expected, rtol=max(torch.finfo(dtype).eps, EPSILON), atol=0)


@pytest.mark.parametrize("loss", BINARY_LOSSES, ids=repr)
def test_an_empty_input(loss, device):
    empty = torch.empty(0, 3, device=device)
    assert run(loss.ours, empty, empty).loss.isnan()
    assert run(loss.ours, empty, empty, reduction="sum").loss == 0
    for reduction in REDUCTIONS:
        assert run(loss.ours, empty, empty, reduction=reduction).gradient.shape == (0, 3)


@pytest.mark.parametrize("weight", [NAN, INF])
@pytest.mark.parametrize("loss", BINARY_LOSSES, ids=repr)
def test_specials_in_the_weight_are_passed_on(loss, weight, device):
    input = torch.tensor([0.3, 0.6, 0.9], device=device)
    weights = torch.tensor([1.0, weight, 1.0], device=device)
    check_parity(loss, input, torch.tensor([1.0, 0.0, 1.0], device=device), weight=weights, reduction="none")


def test_one_bad_element_leaves_the_others_alone(device):
    logits, labels = torch.randn(70, device=device), torch.rand(70, device=device)
    alone = run(BINARY_CROSS_ENTROPY_WITH_LOGITS.ours, logits, labels, reduction="none")
    for place, special in ((3, NAN), (17, INF), (40, -INF), (69, NAN)):
        logits[place] = special
    among_bad = run(BINARY_CROSS_ENTROPY_WITH_LOGITS.ours, logits, labels, reduction="none")
    good = logits.isfinite()
    assert torch.equal(among_bad.loss[good], alone.loss[good])
    assert torch.equal(among_bad.gradient[good], alone.gradient[good])
