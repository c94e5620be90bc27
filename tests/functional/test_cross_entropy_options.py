"""cross_entropy over the cross product of its options, against torch and the float64 reference."""

import itertools

import pytest
import torch
from losses import CROSS_ENTROPY, FLOAT_DTYPES, REDUCTIONS, sample_class_probabilities, sample_input
from parity import check_parity, check_parity_of_mixed_dtypes

SHAPES = [
    (5,),  # one problem without a batch axis: the loss is a scalar whatever the reduction
    (6, 5),  # rows of contiguous classes
    (3, 5, 7),  # the class axis strided by 7: fewer positions than a vector holds
    (2, 5, 3, 4),  # images
    (2, 5, 2, 3, 2),  # volumes
]
INDEX_DTYPES = [torch.int64, torch.uint8, torch.int32]  # int32 is beyond torch, which is given int64 in its place

# ignore_index: a class that exists, torch's default, and 255 as in segmentation masks, which uint8 can hold.
IGNORED_CLASS, DEFAULT, OUTSIDE = 2, -100, 255

LABEL_SMOOTHINGS = [0.0, 0.1, 1.0]  # none, the usual one, the target forgotten altogether


def without_classes(shape):
    return shape[:0] + shape[1:] if len(shape) == 1 else shape[:1] + shape[2:]


def targets_with_ignored(shape, dtype, ignore_index, device):
    """Random classes, the target of every third position ignored, but for a shape with a single one."""
    num_classes = shape[0] if len(shape) == 1 else shape[1]
    target = torch.randint(num_classes, without_classes(shape))
    if target.dim() == 0:
        target.fill_(num_classes - 1)
    elif ignore_index >= 0 or dtype != torch.uint8:
        target.view(-1)[::3] = ignore_index
    return target.to(dtype=dtype, device=device)


def class_weight(shape, dtype, device):
    num_classes = shape[0] if len(shape) == 1 else shape[1]
    return torch.linspace(0.25, 2.0, num_classes, device=device, dtype=dtype)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", LABEL_SMOOTHINGS)
@pytest.mark.parametrize("ignore_index", [IGNORED_CLASS, DEFAULT, OUTSIDE])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_class_indices(dtype, index_dtype, shape, ignore_index, label_smoothing, reduction, device):
    logits = sample_input(CROSS_ENTROPY, shape, dtype, device)
    target = targets_with_ignored(shape, index_dtype, ignore_index, device)
    options = dict(reduction=reduction, ignore_index=ignore_index, label_smoothing=label_smoothing)
    check_parity(CROSS_ENTROPY, logits, target, **options)
    check_parity(CROSS_ENTROPY, logits, target, weight=class_weight(shape, dtype, device), **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", LABEL_SMOOTHINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_class_probabilities(dtype, shape, label_smoothing, reduction, device):
    logits = sample_input(CROSS_ENTROPY, shape, dtype, device)
    target = sample_class_probabilities(shape, dtype, device)
    options = dict(reduction=reduction, label_smoothing=label_smoothing)
    check_parity(CROSS_ENTROPY, logits, target, **options)
    check_parity(CROSS_ENTROPY, logits, target, weight=class_weight(shape, dtype, device), **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_probabilities_that_do_not_sum_to_one(dtype, shape, reduction, device):
    logits = sample_input(CROSS_ENTROPY, shape, dtype, device)
    target = torch.linspace(-0.5, 3.0, logits.numel(), device=device, dtype=dtype).view(shape)
    check_parity(CROSS_ENTROPY, logits, target, reduction=reduction, label_smoothing=0.2)


MIXED_DTYPES = [pair for pair in itertools.product(FLOAT_DTYPES, FLOAT_DTYPES) if pair[0] != pair[1]]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("dtype", "target_dtype"), MIXED_DTYPES, ids=str)
def test_probabilities_of_another_dtype_decide_the_dtype_of_the_loss(dtype, target_dtype, reduction, device):
    logits = sample_input(CROSS_ENTROPY, (4, 5), dtype, device)
    target = sample_class_probabilities((4, 5), target_dtype, device)
    check_parity_of_mixed_dtypes(CROSS_ENTROPY, logits, target, reduction=reduction)


@pytest.mark.parametrize("ignore_index", [-1, -(2**31), 2**40], ids=["negative", "least int32", "beyond int32"])
def test_unusual_ignore_index(ignore_index, device):
    logits = sample_input(CROSS_ENTROPY, (6, 5), device=device)
    target = torch.tensor([0, 4, ignore_index, 2, ignore_index, 1], device=device)
    check_parity(CROSS_ENTROPY, logits, target, ignore_index=ignore_index)


def test_uint8_targets_do_not_take_156_for_minus_100(device):
    logits = sample_input(CROSS_ENTROPY, (2, 200), device=device)
    target = torch.tensor([156, 3], dtype=torch.uint8, device=device)
    check_parity(CROSS_ENTROPY, logits, target, reduction="none")
    assert (CROSS_ENTROPY.ours(logits, target, reduction="none") > 0).all()


def test_int32_targets_give_the_bits_of_int64_targets(device):
    logits = sample_input(CROSS_ENTROPY, (6, 5), device=device)
    target = torch.tensor([0, 4, -100, 2, -100, 1], device=device)
    ours = CROSS_ENTROPY.ours(logits, target.int())
    assert torch.equal(ours, CROSS_ENTROPY.ours(logits, target))


def test_negative_label_smoothing_is_none_as_in_torch(device):
    logits = sample_input(CROSS_ENTROPY, (6, 5), device=device)
    target = torch.tensor([0, 4, 1, 2, 3, 1], device=device)
    negative = CROSS_ENTROPY.ours(logits, target, label_smoothing=-0.1)
    torch.testing.assert_close(negative, CROSS_ENTROPY.torchs(logits, target, label_smoothing=-0.1))
    torch.testing.assert_close(negative, CROSS_ENTROPY.ours(logits, target))
