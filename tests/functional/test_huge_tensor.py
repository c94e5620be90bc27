"""More than 2**31 elements: the offsets of rows are 64-bit numbers. Skipped where 14 GiB of memory are not free."""

import pytest
import torch
from losses import CROSS_ENTROPY
from parity import assert_not_less_exact
from reference import evaluate

GIB = 2**30
NUM_ROWS, NUM_CLASSES = 67_200, 32_000  # 2.15e9 bfloat16 logits: 4.0 GiB, and as much for the gradient
LAST_ROWS = 3


def available_memory():
    with open("/proc/meminfo") as lines:
        kibibytes = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    return kibibytes["MemAvailable"] * 1024


@pytest.fixture
def huge_logits():
    needed = 14 * GIB
    if available_memory() < needed:
        pytest.skip(f"{available_memory() / GIB:.1f} GiB of memory are available, {needed / GIB:.0f} GiB are needed")
    assert NUM_ROWS * NUM_CLASSES > 2**31
    row_pattern = torch.randn(64, NUM_CLASSES).bfloat16()
    logits = torch.empty(NUM_ROWS, NUM_CLASSES, dtype=torch.bfloat16)
    logits.view(-1, 64, NUM_CLASSES).copy_(row_pattern)
    logits[-LAST_ROWS:] = 5 * torch.randn(LAST_ROWS, NUM_CLASSES)
    return logits


def check_rows(logits, target, losses, gradient, rows):
    some_logits, some_target = logits.detach()[rows], target[rows]
    reference = evaluate("cross_entropy", some_logits, some_target, reduction="none")
    in_float32 = some_logits.float().requires_grad_()
    torchs = CROSS_ENTROPY.torchs(in_float32, some_target, reduction="none")
    (torchs_gradient,) = torch.autograd.grad(torchs.sum(), in_float32)
    assert_not_less_exact(losses[rows], torchs.detach(), reference.loss, reference.loss_terms, what="loss")
    assert_not_less_exact(
        gradient[rows], torchs_gradient, reference.gradient, reference.gradient_terms, what="gradient"
    )


@pytest.mark.slow
def test_rows_beyond_two_to_the_31_elements(huge_logits):
    target = torch.randint(NUM_CLASSES, (NUM_ROWS,))
    leaf = huge_logits.requires_grad_()
    losses = CROSS_ENTROPY.ours(leaf, target, reduction="none")
    (gradient,) = torch.autograd.grad(losses, leaf, torch.ones_like(losses))
    first_beyond = 2**31 // NUM_CLASSES
    for rows in (slice(0, 2), slice(first_beyond - 1, first_beyond + 2), slice(-LAST_ROWS, None)):
        check_rows(leaf, target, losses.detach(), gradient, rows)
    losses_of_pattern = losses.detach()[:-LAST_ROWS]
    same_row = losses_of_pattern[::64][target[:-LAST_ROWS][::64] == target[0]]
    assert (same_row == losses_of_pattern[0]).all()


@pytest.mark.slow
def test_mean_of_rows_beyond_two_to_the_31_elements(huge_logits):
    target = torch.full((NUM_ROWS,), -100)
    target[-LAST_ROWS:] = torch.tensor([0, NUM_CLASSES // 2, NUM_CLASSES - 1])
    leaf = huge_logits.requires_grad_()
    loss = CROSS_ENTROPY.ours(leaf, target)
    (gradient,) = torch.autograd.grad(loss, leaf)
    last = slice(-LAST_ROWS, None)
    reference = evaluate("cross_entropy", leaf.detach()[last], target[last])
    eight_bits = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(loss.detach().double(), reference.loss, rtol=eight_bits, atol=0)
    atol = eight_bits * reference.gradient.abs().amax().item()
    torch.testing.assert_close(gradient[last].double(), reference.gradient, rtol=0, atol=atol)
    assert gradient[2**31 // NUM_CLASSES].count_nonzero() == 0
