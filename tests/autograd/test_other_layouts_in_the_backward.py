"""The backward may see copies of the logits in another layout than the forward, and so be another kernel."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from fused_losses.functional import cross_entropy

# From few classes, which tiles take, over batches of rows to rows that are swept alone.
NUM_CLASSES = [3, 64, 70, 300, 1100, 5000]
OPTIONS = [{}, {"label_smoothing": 0.1}, {"softcap": 3.0}, {"lse_square_scale": 0.1}, {"focal_gamma": 2.0}]


TOLERANCES = {torch.float64: (1e-12, 1e-14), torch.float32: (2e-5, 2e-7), torch.bfloat16: (1e-2, 1e-3)}


def channels_first(logits):
    return logits.contiguous()


def channels_last(logits):
    return logits.movedim(1, -1).contiguous().movedim(-1, 1)


def gradient(loss, logits, unpack=None):
    leaf = logits.detach().requires_grad_()
    with saved_tensors_hooks(lambda t: t, lambda t: unpack(t) if unpack and t.shape == logits.shape else t):
        value = loss(leaf)
    (found,) = torch.autograd.grad(value.sum(), leaf)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_classes", NUM_CLASSES)
def test_gradients_of_copies(num_classes, dtype, device):
    """Ignored rows have none, however large their logits, but where the softmax is none."""
    for has_images, options, reduction in itertools.product([False, True], OPTIONS, ["none", "mean", "sum"]):
        logits = 40 * torch.randn(13, num_classes, *([5] if has_images else []), device=device).to(dtype)
        target = torch.randint(0, num_classes, (13, *logits.shape[2:]), device=device)
        target[::3] = -100
        logits[3, 1] = float("nan")
        logits[6, 0] = float("inf")
        logits[9] *= 1e3
        for before, after in itertools.permutations([channels_first, channels_last]):

            def loss(x, target=target, reduction=reduction, options=options):
                return cross_entropy(x, target, reduction=reduction, **options)

            expected = gradient(loss, after(logits))
            found = gradient(loss, before(logits), unpack=after)
            rtol, atol = TOLERANCES[dtype]
            torch.testing.assert_close(found, expected, equal_nan=True, rtol=rtol, atol=atol)


@pytest.mark.parametrize("num_classes", NUM_CLASSES)
def test_jacobians(num_classes, device):
    logits = channels_last(torch.randn(2, num_classes, 3, device=device))
    target = torch.tensor([[1, -100, 2], [-100, 0, 1]], device=device)
    ours, torchs = (
        torch.func.jacrev(lambda x, loss=loss: loss(x, target, reduction="none"))(logits)
        for loss in (cross_entropy, F.cross_entropy)
    )
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("num_classes", NUM_CLASSES)
def test_statistics_of_ignored_rows_are_no_memory_of_others(num_classes, device):
    """Of a kernel that does not read the rows they are zeros."""
    logits = torch.randn(6, num_classes, device=device)
    target = torch.tensor([0, -100, 1, -100, 2, -100], device=device)
    arguments = (logits, target, None, 0, -100, 0.0, False)
    for _ in range(3):
        torch.full((3, 6), float("nan"), device=device)  # freed at once, to be taken for the statistics
        _, statistics = torch.ops.fused_losses.cross_entropy_with_statistics(*arguments)
        assert statistics.isfinite().all()
