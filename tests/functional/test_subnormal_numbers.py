"""Masked logits: what lands among the subnormal numbers may become 0, and nothing else may change.

See Note [Subnormal numbers] in csrc/cpu/flush_to_zero.h.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from losses import BINARY_CROSS_ENTROPY, BINARY_CROSS_ENTROPY_WITH_LOGITS, CROSS_ENTROPY, FLOAT_DTYPES, sample_target
from parity import compute_dtype, run, unit_in_last_place

from fused_losses import _C

# Attention-style masks, and what lands in the subnormal range of float32 and of float64.
MASKS = [-87.4, -88.0, -95.0, -100.0, -103.0, -709.0, -740.0, -1e4, -torch.inf]


@pytest.fixture(params=_C.available_cpu_capabilities(), autouse=True)
def capability(request: pytest.FixtureRequest) -> object:
    before = _C.cpu_capability()
    _C.set_cpu_capability(request.param)
    yield request.param
    _C.set_cpu_capability(before)


def check(ours: torch.Tensor, true: torch.Tensor, dtype: torch.dtype) -> None:
    """Exact to rounding, or a subnormal number that became 0; float16's own subnormal numbers stay."""
    smallest = torch.finfo(compute_dtype(dtype)).smallest_normal
    allowed = unit_in_last_place(true, dtype) / 2 + 1e-5 * true.abs() + smallest
    if dtype == torch.float64:
        allowed = 1e-11 * true.abs() + 1e-300
    finite = true.isfinite()
    assert torch.equal(finite, ours.isfinite())
    assert ((ours.double() - true).abs() <= allowed)[finite].all()


def in_float64(function: Callable[..., torch.Tensor], input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    target = target.double() if target.is_floating_point() else target
    return run(function, input.double(), target, reduction="sum").gradient


@pytest.mark.parametrize("shape", [(33, 10), (17, 100), (5, 1100), (3, 21, 40), (2, 100, 5)], ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_masked_classes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    for mask in MASKS:
        logits = torch.randn(shape).to(dtype)
        logits[:, ::3] = mask  # class 1 is none of them
        target = torch.ones(shape[:1] + shape[2:], dtype=torch.long)
        gradient = run(CROSS_ENTROPY.ours, logits, target, reduction="sum").gradient
        check(gradient, in_float64(F.cross_entropy, logits, target), dtype)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_certain_elements(dtype: torch.dtype) -> None:
    loss = BINARY_CROSS_ENTROPY_WITH_LOGITS
    for mask in MASKS[:-1]:
        logits = torch.randn(1000).to(dtype)
        target = sample_target(loss, (1000,), dtype)
        logits[::3], target[::3] = mask, 0.0
        logits[1::3], target[1::3] = -mask, 1.0
        gradient = run(loss.ours, logits, target, reduction="sum").gradient
        exponential = logits[0].double().exp()  # the derivative there is sigmoid(x), and -sigmoid(-x)
        check(gradient[::3], exponential.expand(334), dtype)
        check(-gradient[1::3], exponential.expand(333), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_subnormal_probabilities_are_read(dtype: torch.dtype) -> None:
    values = [5e-324, 1e-310] if dtype == torch.float64 else [1e-40, 3e-39]
    probabilities = torch.tensor(values, dtype=torch.float64).to(dtype)
    relative = 1e-2 if dtype == torch.bfloat16 else 1e-5
    loss = BINARY_CROSS_ENTROPY
    for value in (0.0, 1.0):
        target = torch.full_like(probabilities, value)
        ours = run(loss.ours, probabilities, target, reduction="none")
        torchs = run(loss.torchs, probabilities, target, reduction="none")
        for our_result, torchs_result in zip(ours, torchs, strict=True):
            torch.testing.assert_close(our_result, torchs_result, rtol=relative, atol=0)


def test_the_processor_is_left_as_it_was() -> None:
    run(CROSS_ENTROPY.ours, torch.randn(300, 300), torch.zeros(300, dtype=torch.long))
    assert torch.full((3000,), 1e-40).mul_(0.5).gt(0).all()
