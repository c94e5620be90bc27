"""Gradients of 64 MiB and more are written past the caches: Note [Streaming stores] in csrc/cpu/vec.h."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from fused_losses import _C
from fused_losses import functional as fused

SMALLEST_STREAMED = 64 << 20
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(params=_C.available_cpu_capabilities(), autouse=True)
def capability(request: pytest.FixtureRequest) -> Iterator[None]:
    in_use = _C.cpu_capability()
    _C.set_cpu_capability(request.param)
    yield
    _C.set_cpu_capability(in_use)


def check(gradient: torch.Tensor, small: torch.Tensor) -> None:
    """The streamed gradient, of rows that repeat, is to the bit the one of a period alone, which is stored as usual."""
    assert gradient.numel() * gradient.element_size() >= SMALLEST_STREAMED
    for period in gradient.split(len(small)):
        assert torch.equal(period, small[: len(period)])


# Odd, so that rows begin anywhere in a line: swept in batches and not streamed; streamed, and in a smaller tensor swept
# in batches; two whole blocks and a part of a third.
@pytest.mark.parametrize("classes", [301, 1001, 2051])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_begin_anywhere_in_a_line(dtype: torch.dtype, classes: int, label_smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    part = torch.randn(64, classes, generator=generator).to(dtype)
    target = torch.randint(classes, (64,), generator=generator)
    target[5] = -100
    repeats = SMALLEST_STREAMED // (part.numel() * part.element_size()) + 1
    gradients = []
    for count in (1, repeats):
        logits = part.repeat(count, 1).requires_grad_()
        loss = fused.cross_entropy(logits, target.repeat(count), reduction="sum", label_smoothing=label_smoothing)
        gradients += torch.autograd.grad(loss, logits)
    check(gradients[1], gradients[0])
    leaf = part.double().requires_grad_()
    (expected,) = torch.autograd.grad(
        F.cross_entropy(leaf, target, reduction="sum", label_smoothing=label_smoothing), leaf
    )
    torch.testing.assert_close(gradients[0], expected.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    part = torch.randn(32768, 5, generator=generator).to(dtype)
    target = torch.rand(32768, 5, generator=generator).to(dtype)
    repeats = SMALLEST_STREAMED // (part.numel() * part.element_size()) + 1
    gradients = []
    for count in (1, repeats):
        logits = part.repeat(count, 1).requires_grad_()
        loss = fused.binary_cross_entropy_with_logits(logits, target.repeat(count, 1), reduction="sum")
        gradients += torch.autograd.grad(loss, logits)
    check(gradients[1], gradients[0])
