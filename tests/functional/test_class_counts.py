"""Every number of classes and rows at which a kernel may change its ways, and its two neighbours."""

import pytest
import torch
from losses import CROSS_ENTROPY, FLOAT_DTYPES, NLL_LOSS, sample, sample_class_probabilities
from parity import check_parity

# One class (the loss is 0), two, primes below a vector; 16 float32 or 8 float64 fill an AVX-512 register, 32 and 64 two
# and four of them; around 64 a kernel for few classes (rows side by side) gives way to one for many (classes side by
# side); 100 and 1000 are the usual data sets'. Up to 1024 rows go in batches of 2 to 16, by type and instruction set.
FEW_CLASSES = [1, 2, 3, 5, 10, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 1000]

# Block sizes that are powers of two, from both sides; 4097 is a block of 4096 and a tail of one; 32000 and 50257 are
# vocabularies: rows of more than a GPU's registers, and in every type of more than the shared memory of some.
MANY_CLASSES = [1000, 1023, 1024, 1025, 2047, 2048, 2049, 4097, 32000, 50257]

# One row, two; a group of 16 rows side by side, with one too few and one too many, and four such groups; 200.
ROWS = [1, 2, 15, 16, 17, 63, 64, 65, 200]


def check_reductions(num_rows, num_classes, dtype, device):
    logits, target = sample(CROSS_ENTROPY, (num_rows, num_classes), dtype, device)
    target[num_rows // 2 :: 5] = -100
    target[0] = num_classes - 1  # the last class of the tail; and never all rows ignored
    check_parity(CROSS_ENTROPY, logits, target, reduction="mean")
    grad_output = torch.linspace(0.5, 2, num_rows, device=device)
    check_parity(CROSS_ENTROPY, logits, target, grad_output, reduction="none")


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("num_classes", FEW_CLASSES)
def test_few_classes(num_classes, num_rows, dtype, device):
    check_reductions(num_rows, num_classes, dtype, device)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("num_classes", MANY_CLASSES)
def test_many_classes(num_classes, num_rows, dtype, device):
    check_reductions(num_rows, num_classes, dtype, device)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", [*FEW_CLASSES, 1025, 4097])
def test_class_weights_and_smoothing(num_classes, dtype, device):
    logits, target = sample(CROSS_ENTROPY, (17, num_classes), dtype, device)
    weight = torch.linspace(0.5, 2, num_classes, device=device).to(dtype)
    check_parity(CROSS_ENTROPY, logits, target, weight=weight, label_smoothing=0.1)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", [10, 62, 1000, 4097, 32000])
def test_a_uniform_target_of_full_smoothing(num_classes, dtype, device):
    """C probabilities of 1 / C: rounded and added up in float32 they do not make 1, and the loss is off by as much."""
    logits = (0.1 * torch.randn(50, num_classes)).to(device=device, dtype=dtype)
    target = torch.randint(num_classes, (50,), device=device)
    check_parity(CROSS_ENTROPY, logits, target, reduction="none", label_smoothing=1.0)
    check_parity(CROSS_ENTROPY, logits, target, label_smoothing=1.0)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", [*FEW_CLASSES, 1025, 4097])
def test_class_probabilities(num_classes, dtype, device):
    logits, _ = sample(CROSS_ENTROPY, (17, num_classes), dtype, device)
    target = sample_class_probabilities((17, num_classes), dtype, device)
    check_parity(CROSS_ENTROPY, logits, target, label_smoothing=0.1)


# Positions behind the class axis: one, a vector of 16 and a tile of 256 with their neighbours, an odd image.
INNER_SHAPES = [(1,), (15,), (16,), (17,), (255,), (256,), (257,), (13, 21)]


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("inner_shape", INNER_SHAPES, ids=str)
@pytest.mark.parametrize("num_classes", [1, 2, 5, 21, 64, 150])  # 21 and 150: the classes of two segmentation data sets
def test_class_axis_before_inner_axes(num_classes, inner_shape, dtype, device):
    logits, target = sample(CROSS_ENTROPY, (2, num_classes, *inner_shape), dtype, device)
    check_parity(CROSS_ENTROPY, logits, target, reduction="mean")
    grad_output = torch.linspace(0.5, 2, target.numel(), device=device).view(target.shape)
    check_parity(CROSS_ENTROPY, logits, target, grad_output, reduction="none")


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("num_classes", [1, 2, 10, 65, 1025])
def test_negative_log_likelihood(num_classes, num_rows, dtype, device):
    log_probability, target = sample(NLL_LOSS, (num_rows, num_classes), dtype, device)
    check_parity(NLL_LOSS, log_probability, target, reduction="mean")
    grad_output = torch.linspace(0.5, 2, num_rows, device=device)
    check_parity(NLL_LOSS, log_probability, target, grad_output, reduction="none")


def test_one_class_has_no_loss_and_no_gradient(device):
    logits = torch.randn(20, 1, device=device).requires_grad_()
    losses = CROSS_ENTROPY.ours(logits, torch.zeros(20, dtype=torch.int64, device=device), reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert (losses == 0).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("num_classes", [57, 64, 200])
def test_sums_over_classes_lose_little(num_classes, device):
    """Rows one by one, each held to its own error of torch's; their targets do not sum to 1, so that the sums count."""
    for _ in range(200):
        logits = 5 * torch.randn(num_classes, device=device)
        check_parity(CROSS_ENTROPY, logits, 0.2 * torch.rand(num_classes, device=device), reduction="none")
