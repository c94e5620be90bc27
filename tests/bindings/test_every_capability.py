"""A compact parity grid for every instruction set this machine has: the same answers on every processor."""

import pytest
import torch
from losses import (
    BINARY_CROSS_ENTROPY_WITH_LOGITS,
    BINARY_LOSSES,
    CROSS_ENTROPY,
    FLOAT_DTYPES,
    LOSSES,
    NLL_LOSS,
    REDUCTIONS,
    sample,
    sample_class_probabilities,
)
from parity import check_parity, run

from fused_losses import _C


@pytest.fixture(params=_C.available_cpu_capabilities(), autouse=True)
def capability(request):
    before = _C.cpu_capability()
    _C.set_cpu_capability(request.param)
    yield request.param
    _C.set_cpu_capability(before)


# Around the vector lengths of the sets: 4 and 8 float64 or 8 and 16 float32 elements, twice and four times that; a
# hundred and a thousand; and a tail behind a long row.
CLASS_COUNTS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 100, 1000, 4097]


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", CLASS_COUNTS)
def test_rows_of_classes(num_classes, dtype):
    logits, target = sample(CROSS_ENTROPY, (19, num_classes), dtype)
    target[3] = -100
    weight = torch.linspace(0.5, 2, num_classes).to(dtype)
    check_parity(CROSS_ENTROPY, logits, target)
    check_parity(CROSS_ENTROPY, logits, target, reduction="none")
    check_parity(CROSS_ENTROPY, logits, target, weight=weight, label_smoothing=0.1)
    check_parity(CROSS_ENTROPY, logits, sample_class_probabilities((19, num_classes), dtype), weight=weight)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 21, 16, 17), (1, 150, 33)], ids=str)
@pytest.mark.parametrize("loss", [CROSS_ENTROPY, NLL_LOSS], ids=repr)
def test_strided_classes(loss, shape, dtype):
    input, target = sample(loss, shape, dtype)
    for reduction in REDUCTIONS:
        check_parity(loss, input, target, reduction=reduction)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("num_elements", [1, 7, 8, 9, 15, 16, 17, 33, 1025])
@pytest.mark.parametrize("loss", BINARY_LOSSES, ids=repr)
def test_binary(loss, num_elements, dtype):
    input, target = sample(loss, (num_elements,), dtype)
    weight = torch.rand(num_elements).to(dtype)
    for reduction in REDUCTIONS:
        check_parity(loss, input, target, weight=weight, reduction=reduction)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_pos_weight(dtype):
    loss = BINARY_CROSS_ENTROPY_WITH_LOGITS
    check_parity(loss, *sample(loss, (9, 33), dtype), pos_weight=torch.linspace(0.5, 3, 33).to(dtype))


@pytest.mark.parametrize("num_classes", [5, 40, 5000])
def test_infinities_and_nans(num_classes):
    logits = torch.randn(6, num_classes)
    logits[0, :-1] = -torch.inf
    logits[1, 0], logits[2, 0], logits[3, -1] = torch.inf, torch.nan, -torch.inf
    logits[4] = -torch.inf
    target = torch.full((6,), num_classes - 1)
    check_parity(CROSS_ENTROPY, logits, target, reduction="none")
    check_parity(CROSS_ENTROPY, logits, target, reduction="none", label_smoothing=0.1)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_sums_are_the_same_for_any_number_of_threads(loss, restore_num_threads):
    input, target = sample(loss, (3000, 33))
    outcomes = []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        outcomes.append(run(loss.ours, input, target))
    assert torch.equal(outcomes[0].loss, outcomes[1].loss)
    assert torch.equal(outcomes[0].gradient, outcomes[1].gradient)


@pytest.mark.parametrize("num_classes", [5, 1000])
def test_an_index_out_of_range_is_named(num_classes):
    logits, target = sample(CROSS_ENTROPY, (40, num_classes))
    target[39] = num_classes
    with pytest.raises(IndexError, match=f"Target {num_classes} is out of bounds."):
        CROSS_ENTROPY.ours(logits, target)
