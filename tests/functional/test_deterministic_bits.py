"""The same bits from run to run, for any number of threads, and for a row alone or in a batch."""

import pytest
import torch
from losses import (
    BINARY_CROSS_ENTROPY,
    BINARY_LOSSES,
    CROSS_ENTROPY,
    LOSSES,
    REDUCTIONS,
    sample,
    sample_class_probabilities,
    sample_input,
)
from parity import run

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# Few classes, a hundred, and rows of more than one block; then images, whose class axis is strided. Each is large
# enough for two threads to share (torch gives a thread 2**15 elements or more), and no number of rows is a multiple of
# a block.
SHAPES = [(20_011, 10), (2003, 100), (61, 5000), (3, 21, 57, 61), (5, 150, 23, 19)]


def assert_same_bits(first, second):
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.gradient, second.gradient)


def weights_of(loss, shape, dtype, device):
    return torch.linspace(0.5, 2, shape[1] if loss.by_class else shape[-1], device=device).to(dtype)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_one_and_two_threads(loss, shape, dtype, reduction, restore_num_threads):
    input, target = sample(loss, shape, dtype)
    weight = weights_of(loss, shape, dtype, "cpu")
    outcomes = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        outcomes.append(run(loss.ours, input, target, weight=weight, reduction=reduction))
    assert_same_bits(outcomes[0], outcomes[1])
    assert_same_bits(outcomes[0], outcomes[2])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_one_and_two_threads_with_probabilities_and_smoothing(reduction, restore_num_threads):
    logits, target = sample_input(CROSS_ENTROPY, (2003, 100)), sample_class_probabilities((2003, 100))
    outcomes = []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        outcomes.append(run(CROSS_ENTROPY.ours, logits, target, reduction=reduction, label_smoothing=0.1))
    assert_same_bits(*outcomes)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_run_to_run(loss, shape, reduction, device):
    input, target = sample(loss, shape, device=device)
    once = run(loss.ours, input, target, reduction=reduction)
    for _ in range(3):
        assert_same_bits(run(loss.ours, input, target, reduction=reduction), once)


# The row's place decides which rows it shares a vector or a tile with: the first, inside, at and behind the end of a
# group of 16, and the last one of the tail.
ROWS_PICKED = [0, 7, 15, 16, 34]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", [2, 10, 64, 65, 100, 5000])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_row_alone_and_in_a_batch(loss, num_classes, dtype, device):
    input, target = sample(loss, (35, num_classes), dtype, device)
    batch = run(loss.ours, input, target, reduction="none")
    for row in ROWS_PICKED:
        alone = run(loss.ours, input[row : row + 1], target[row : row + 1], reduction="none")
        assert torch.equal(alone.loss[0], batch.loss[row])
        assert torch.equal(alone.gradient[0], batch.gradient[row])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 3, 7), (5, 21, 9, 30), (3, 150, 4, 70)], ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_an_image_alone_and_in_a_batch(loss, shape, dtype, device):
    input, target = sample(loss, shape, dtype, device)
    batch = run(loss.ours, input, target, reduction="none")
    for image in (0, shape[0] - 1):
        alone = run(loss.ours, input[image : image + 1], target[image : image + 1], reduction="none")
        assert torch.equal(alone.loss[0], batch.loss[image])
        assert torch.equal(alone.gradient[0], batch.gradient[image])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", BINARY_LOSSES, ids=repr)
def test_an_element_alone_and_among_others(loss, dtype, device):
    """The tail of a vector must be computed as the vector is."""
    input, target = sample(loss, (67,), dtype, device)
    together = run(loss.ours, input, target, reduction="none")
    for place in (0, 5, 31, 32, 63, 64, 66):
        alone = run(loss.ours, input[place : place + 1], target[place : place + 1], reduction="none")
        assert torch.equal(alone.loss[0], together.loss[place])
        assert torch.equal(alone.gradient[0], together.gradient[place])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_targets_of_0_and_1_alone_and_beside_soft_ones(dtype, device):
    """A vector of targets that are all 0 or 1 takes one logarithm instead of two."""
    input = torch.cat([torch.tensor([0.0, 1.0]), torch.rand(65)]).to(device=device, dtype=dtype)
    hard = torch.randint(2, (67,), device=device).to(dtype)
    hard[:2] = input[:2]  # a loss of 0, of the same sign
    among_soft = torch.where(torch.arange(67, device=device) % 3 == 2, torch.full_like(hard, 0.25), hard)
    alone = run(BINARY_CROSS_ENTROPY.ours, input, hard, reduction="none")
    mixed = run(BINARY_CROSS_ENTROPY.ours, input, among_soft, reduction="none")
    same = among_soft == hard
    assert not same.all()
    assert torch.equal(mixed.loss[same], alone.loss[same])
    assert torch.equal(mixed.loss[same].signbit(), alone.loss[same].signbit())
    assert torch.equal(mixed.gradient[same], alone.gradient[same])


def check_permuted_rows(num_classes, device):
    logits, target = sample(CROSS_ENTROPY, (35, num_classes), device=device)
    permutation = torch.randperm(35, device=device)
    straight = run(CROSS_ENTROPY.ours, logits, target, reduction="none")
    permuted = run(CROSS_ENTROPY.ours, logits[permutation], target[permutation], reduction="none")
    assert torch.equal(straight.loss[permutation], permuted.loss)
    assert torch.equal(straight.gradient[permutation], permuted.gradient)


@pytest.mark.parametrize("num_classes", [12, 100, 5000])
def test_permuted_rows_have_permuted_results(num_classes, device):
    check_permuted_rows(num_classes, device)


def test_permuted_rows_that_do_not_begin_aligned_have_permuted_results_on_the_cpu():
    """On a GPU the order of a row's sum depends on where in 16 bytes the row begins: 40 bytes are not always alike."""
    check_permuted_rows(10, "cpu")


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_deterministic_algorithms_mode(loss, device):
    """torch.use_deterministic_algorithms(True) neither raises nor changes a bit."""
    input, target = sample(loss, (5, 21, 9, 30), device=device)
    expected = run(loss.ours, input, target)
    torch.use_deterministic_algorithms(True)
    try:
        assert_same_bits(run(loss.ours, input, target), expected)
    finally:
        torch.use_deterministic_algorithms(False)
