"""nll_loss over the cross product of its options, against torch and the float64 reference."""

import pytest
import torch
from losses import FLOAT_DTYPES, NLL_LOSS, REDUCTIONS, sample_input
from parity import check_parity

# No batch axis, rows, one inner axis, images, volumes; 5 classes, so that every vector has a tail.
SHAPES = [(5,), (6, 5), (3, 5, 7), (2, 5, 3, 4), (2, 5, 2, 3, 2)]


def targets(shape, index_dtype, ignored, device):
    without_classes = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.randint(5, without_classes)
    if ignored is not None and target.dim():
        target.view(-1)[::3] = ignored
    return target.to(device=device, dtype=index_dtype)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("ignore_index", [2, -100, 255], ids=["a class", "default", "mask value"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("index_dtype", [torch.int64, torch.uint8, torch.int32], ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_nll_loss(dtype, index_dtype, shape, ignore_index, weighted, reduction, device):
    log_probability = sample_input(NLL_LOSS, shape, dtype, device)
    ignored = None if ignore_index < 0 and index_dtype == torch.uint8 else ignore_index
    target = targets(shape, index_dtype, ignored, device)
    if target.dim() == 0:
        target.fill_(4)
    weight = torch.linspace(0.25, 2.0, 5, device=device, dtype=dtype) if weighted else None
    check_parity(NLL_LOSS, log_probability, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_inputs_need_not_be_log_probabilities(reduction, device):
    scores = torch.linspace(-3, 8, 30, device=device).view(6, 5)
    target = torch.tensor([0, 4, 1, 2, 3, 1], device=device)
    check_parity(NLL_LOSS, scores, target, reduction=reduction)


@pytest.mark.parametrize("shape", [(3000, 5), (2, 5, 40, 40)], ids=str)
def test_the_gradient_is_zero_but_at_the_targets(shape, device):
    log_probability = sample_input(NLL_LOSS, shape, device=device).requires_grad_()
    target = targets(shape, torch.int64, None, device)
    (gradient,) = torch.autograd.grad(NLL_LOSS.ours(log_probability, target, reduction="sum"), log_probability)
    one_hot = torch.zeros_like(gradient).scatter_(1, target.unsqueeze(1), 1.0)
    assert torch.equal(gradient, -one_hot)
