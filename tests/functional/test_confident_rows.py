"""Rows that are predicted well: the loss and the gradient at the target are small, and exact all the same.

In float32 the probability of such a target rounds to 1 from a margin of 17 on. See Note [Confident rows] in
csrc/core/cross_entropy.h.
"""

from __future__ import annotations

import pytest
import torch
from losses import CROSS_ENTROPY, FLOAT_DTYPES
from parity import run, unit_in_last_place

from fused_losses import _C

MARGINS = torch.tensor([0.0, 1e-3, 1.0, 8.0, 14.9, 16.6, 17.5, 25.0, 40.0, 60.0, 80.0], dtype=torch.float64)

# Few classes, transposed; rows in batches; a block of a row, two, and many; a strided axis in one chunk and in two.
SHAPES = [(11, 2), (11, 10), (11, 100), (11, 1000), (11, 1100), (11, 9000), (11, 21, 3), (11, 100, 3)]


def confident_rows(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose target is the largest by the margins above, or nearly as large as the largest."""
    target = torch.randint(shape[1], shape[:1] + shape[2:])
    values = torch.rand(shape, dtype=torch.float64)
    at_target = target.unsqueeze(1)
    margins = MARGINS.view(-1, *(1,) * (len(shape) - 1)).expand(at_target.shape)
    return values.scatter(1, at_target, values.amax(1, keepdim=True) + margins).to(dtype), target


def expected(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses and minus one less the target's probability, in float64."""
    at_target = target.unsqueeze(1)
    relative = logits.double() - logits.double().gather(1, at_target)
    others = relative.exp().scatter(1, at_target, 0).sum(1)
    return others.log1p(), -others / (1 + others)


def check(logits: torch.Tensor, target: torch.Tensor) -> None:
    dtype = logits.dtype
    for weight in (None, torch.linspace(0.5, 2, logits.size(1)).to(dtype)):
        ours = run(CROSS_ENTROPY.ours, logits, target, weight=weight, reduction="none")
        of_target = torch.ones(target.shape) if weight is None else weight[target]
        gradient = ours.gradient.gather(1, target.unsqueeze(1)).squeeze(1)
        for value, true in zip((ours.loss, gradient), expected(logits, target), strict=True):
            true = true * of_target.double()
            units = 2 * unit_in_last_place(true, dtype) if dtype.itemsize == 2 else 0
            # Logits of 80 are themselves exact to 4e-6 of one alone.
            allowed = units + true.abs() * (1e-13 if dtype == torch.float64 else 1e-5 if dtype.itemsize == 4 else 0)
            assert ((value.double() - true).abs() <= allowed).all(), (value, true)


def check_smoothed(logits: torch.Tensor, target: torch.Tensor) -> None:
    """The point mass's part alone: what the dense mass gives is taken away, in float64, where both are exact."""
    smoothing = 0.5
    ours = run(CROSS_ENTROPY.ours, logits, target, label_smoothing=smoothing, reduction="none")
    at_target = target.unsqueeze(1)
    point = expected(logits, target)[1]
    dense = smoothing * ((1 + point) - 1 / logits.size(1))
    gradient = ours.gradient.gather(1, at_target).squeeze(1).double()
    true = dense + (1 - smoothing) * point
    slack = unit_in_last_place(true, logits.dtype) + 1e-5 * ((1 - smoothing) * point).abs() + 4e-7 * dense.abs()
    assert ((gradient - true).abs() <= slack).all(), (gradient, true)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_margin(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    logits, target = confident_rows(shape, dtype)
    check(logits, target)
    check(logits.transpose(1, -1).contiguous().transpose(1, -1), target)
    check_smoothed(logits, target)


@pytest.mark.parametrize("capability", _C.available_cpu_capabilities())
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_every_margin_on_every_processor(capability: str, dtype: torch.dtype) -> None:
    before = _C.cpu_capability()
    _C.set_cpu_capability(capability)
    try:
        for shape in SHAPES:
            check(*confident_rows(shape, dtype))
    finally:
        _C.set_cpu_capability(before)


@pytest.mark.parametrize("num_classes", [2, 100, 3000])
def test_ties_and_single_classes(num_classes: int, device: str) -> None:
    """Several classes as large as the target; no other class at all; every other one masked."""
    logits = torch.zeros(2, num_classes)
    target = torch.tensor([0, num_classes - 1])
    check(logits, target)
    for row, target_class in enumerate(target):
        logits[row] = -torch.inf
        logits[row, target_class] = 3.0
    outcome = run(CROSS_ENTROPY.ours, logits, target, reduction="none")
    assert (outcome.loss == 0).all()
    assert (outcome.gradient == 0).all()
    outcome = run(CROSS_ENTROPY.ours, torch.tensor([[5.0]]), torch.tensor([0]), reduction="none")
    assert outcome.loss == 0 and outcome.gradient == 0
