"""The two binary losses over dtypes, weights that broadcast along every axis, reductions and mixed precisions."""

import itertools

import pytest
import torch
from losses import (
    BINARY_CROSS_ENTROPY,
    BINARY_CROSS_ENTROPY_WITH_LOGITS,
    BINARY_LOSSES,
    FLOAT_DTYPES,
    REDUCTIONS,
    sample,
    sample_input,
)
from parity import check_parity, check_parity_of_mixed_dtypes, run

SHAPES = [
    (),  # one number
    (7,),  # shorter than a vector
    (33,),  # a vector and a tail of one
    (4, 3, 5),  # three axes to broadcast along
    (0, 3),  # nothing at all
]
# Every way a factor may broadcast over (4, 3, 5): full, last axis, a middle axis, the first axis, two axes, one number.
FACTOR_SHAPES = [(4, 3, 5), (5,), (3, 1), (4, 1, 1), (4, 1, 5), (1,), ()]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("loss", BINARY_LOSSES, ids=repr)
def test_unweighted(loss, dtype, shape, reduction, device):
    check_parity(loss, *sample(loss, shape, dtype, device), reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("factor_shape", FACTOR_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("loss", BINARY_LOSSES, ids=repr)
def test_weight_broadcasts(loss, dtype, factor_shape, reduction, device):
    weight = torch.randn(factor_shape, device=device, dtype=dtype)  # of either sign
    check_parity(loss, *sample(loss, (4, 3, 5), dtype, device), weight=weight, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight_shape", [None, (3, 1)], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("factor_shape", FACTOR_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_pos_weight_broadcasts(dtype, factor_shape, weight_shape, reduction, device):
    loss = BINARY_CROSS_ENTROPY_WITH_LOGITS
    pos_weight = 0.2 + 3 * torch.rand(factor_shape, device=device).to(dtype)
    weight = None if weight_shape is None else torch.rand(weight_shape, device=device).to(dtype)
    options = dict(weight=weight, pos_weight=pos_weight, reduction=reduction)
    check_parity(loss, *sample(loss, (4, 3, 5), dtype, device), **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("loss", BINARY_LOSSES, ids=repr)
def test_hard_labels(loss, dtype, reduction, device):
    input = sample_input(loss, (6, 11), dtype, device)
    labels = (torch.rand(6, 11, device=device) < 0.3).to(dtype)
    check_parity(loss, input, labels, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_labels_outside_of_zero_and_one_are_accepted_with_logits(reduction, device):
    loss = BINARY_CROSS_ENTROPY_WITH_LOGITS
    labels = torch.linspace(-2, 3, 66, device=device).view(6, 11)
    check_parity(loss, sample_input(loss, (6, 11), device=device), labels, reduction=reduction)


MIXED_DTYPES = [pair for pair in itertools.product(FLOAT_DTYPES, FLOAT_DTYPES) if pair[0] != pair[1]]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("dtype", "target_dtype"), MIXED_DTYPES, ids=str)
def test_the_target_decides_the_dtype_of_the_loss_with_logits(dtype, target_dtype, reduction, device):
    loss = BINARY_CROSS_ENTROPY_WITH_LOGITS
    logits = sample_input(loss, (4, 5), dtype, device)
    target = torch.rand(4, 5, device=device).to(target_dtype)
    ours = check_parity_of_mixed_dtypes(loss, logits, target, reduction=reduction)
    assert ours.loss.dtype == target_dtype
    assert ours.gradient.dtype == dtype


@pytest.mark.parametrize(("dtype", "weight_dtype"), MIXED_DTYPES, ids=str)
@pytest.mark.parametrize("loss", BINARY_LOSSES, ids=repr)
def test_a_weight_of_another_dtype_leaves_the_dtype_of_the_loss(loss, dtype, weight_dtype, device):
    weight = torch.linspace(0.25, 2, 5, device=device).to(weight_dtype)
    ours = check_parity_of_mixed_dtypes(loss, *sample(loss, (4, 5), dtype, device), weight=weight)
    assert ours.loss.dtype == ours.gradient.dtype == dtype
    if loss is BINARY_CROSS_ENTROPY_WITH_LOGITS:
        check_parity_of_mixed_dtypes(loss, *sample(loss, (4, 5), dtype, device), pos_weight=weight, reduction="none")


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("loss", BINARY_LOSSES, ids=repr)
def test_zero_weights_make_zero_losses_and_gradients(loss, dtype, device):
    input, target = sample(loss, (3, 5), dtype, device)
    weight = torch.tensor([1, 0, 2, 0, 1], device=device, dtype=dtype)
    loss_value, gradient = run(loss.ours, input, target, weight=weight, reduction="none")
    assert (loss_value[:, [1, 3]] == 0).all() and (loss_value[:, [0, 2, 4]] > 0).all()
    assert (gradient[:, [1, 3]] == 0).all() and (gradient[:, [0, 2, 4]] != 0).all()


def test_probabilities_near_zero_keep_their_relative_accuracy(device):
    """log1p(-x), not log(1 - x): at 1e-6 the latter has an error of 3 % in float32."""
    input = torch.logspace(-12, -1, 100, device=device)
    check_parity(BINARY_CROSS_ENTROPY, input, torch.zeros_like(input), reduction="none")
    losses = BINARY_CROSS_ENTROPY.ours(input, torch.zeros_like(input), reduction="none")
    exact = -(-input.double()).log1p()
    assert ((losses - exact).abs() <= 4 * torch.finfo(torch.float32).eps * exact).all()


def test_logits_far_out_keep_their_relative_accuracy(device):
    """log1p(exp(-|x|)) is small there: an absolute error would be all of it."""
    logits = torch.linspace(1, 80, 100, device=device)
    losses = BINARY_CROSS_ENTROPY_WITH_LOGITS.ours(logits, torch.ones_like(logits), reduction="none")
    exact = (-logits.double()).exp().log1p()
    assert ((losses - exact).abs() <= 4 * torch.finfo(torch.float32).eps * exact).all()
