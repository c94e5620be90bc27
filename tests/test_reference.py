"""The float64 reference agrees with torch's float64 losses, and the accuracy rule rejects what is inexact."""

import pytest
import torch
from losses import BINARY_LOSSES, CROSS_ENTROPY, LOSSES, REDUCTIONS, sample, sample_class_probabilities, sample_input
from parity import assert_not_less_exact, rounding_slack, run, unit_in_last_place
from reference import evaluate


def assert_agrees_with_torch(loss, input, target, **options):
    torchs = run(loss.torchs, input, target, **options)
    reference = evaluate(loss.name, input, target, **options)
    for name in ("loss", "gradient"):
        difference = (getattr(reference, name) - getattr(torchs, name)).abs().amax()
        assert difference <= rounding_slack(getattr(reference, name + "_terms").amax(), torch.float64), name


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(6,), (4, 6), (3, 6, 2, 5)], ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_reference_is_torch_in_float64(loss, shape, reduction):
    input, target = sample(loss, shape, dtype=torch.float64)
    assert_agrees_with_torch(loss, input, target, reduction=reduction)
    num_weights = 6 if loss.by_class else shape[-1]
    weight = 0.5 + torch.rand(num_weights, dtype=torch.float64)
    assert_agrees_with_torch(loss, input, target, reduction=reduction, weight=weight)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reference_of_smoothed_and_ignored_classes_is_torch_in_float64(reduction):
    logits, target = sample(CROSS_ENTROPY, (9, 6), dtype=torch.float64)
    target[::3] = 2
    options = dict(reduction=reduction, label_smoothing=0.3, weight=torch.rand(6, dtype=torch.float64))
    assert_agrees_with_torch(CROSS_ENTROPY, logits, target, ignore_index=2, **options)
    assert_agrees_with_torch(CROSS_ENTROPY, logits, sample_class_probabilities((9, 6), torch.float64), **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reference_of_positive_weights_is_torch_in_float64(reduction):
    logits, target = sample(BINARY_LOSSES[1], (9, 6), dtype=torch.float64)
    assert_agrees_with_torch(
        BINARY_LOSSES[1], logits, target, reduction=reduction, pos_weight=torch.rand(6, dtype=torch.float64)
    )


def test_unit_in_last_place_is_the_distance_to_the_next_number():
    for dtype in (torch.float32, torch.float64):
        values = torch.tensor([1.0, 1.5, -3.0, 65504.0, 1e-30, 0.0], dtype=dtype)
        distance = torch.nextafter(values.abs(), torch.tensor(torch.inf, dtype=dtype)) - values.abs()
        assert torch.equal(unit_in_last_place(values.double(), dtype), distance.double())
    assert unit_in_last_place(torch.tensor(1.0).double(), torch.bfloat16) == 2**-7
    assert unit_in_last_place(torch.tensor(0.0).double(), torch.float16) == 2**-24


def test_accuracy_rule_rejects_an_error_above_torchs():
    reference = sample_input(CROSS_ENTROPY, (100,), torch.float64)
    torchs = reference.float()
    assert_not_less_exact(torchs, torchs, reference)
    one_wrong_element = torchs.clone()
    one_wrong_element[17] += 20 * torch.finfo(torch.float32).eps * reference.abs().max()
    with pytest.raises(AssertionError, match="1 of 100 too inexact"):
        assert_not_less_exact(one_wrong_element, torchs, reference)


def test_accuracy_rule_rejects_a_sum_kept_in_16_bits():
    values = torch.rand(3000).bfloat16()
    running_sum = torch.zeros((), dtype=torch.bfloat16)
    for value in values:
        running_sum += value
    with pytest.raises(AssertionError, match="too inexact"):
        assert_not_less_exact(running_sum, values.float().sum(), values.double().sum())


def test_accuracy_rule_rejects_a_number_in_place_of_nan():
    with pytest.raises(AssertionError, match="NaN in other places"):
        assert_not_less_exact(torch.zeros(2), torch.tensor([0.0, torch.nan]), torch.zeros(2).double())
