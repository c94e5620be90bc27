"""Memory of large gradients that is kept for the next one: csrc/ops/gradient_pool.h."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fused_losses
from fused_losses import _C
from fused_losses import functional as fused

ROWS, CLASSES = 2048, 1024  # 8 MiB of float32

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the pool is Linux's MADV_FREE")


@pytest.fixture(autouse=True)
def default_limit() -> Iterator[None]:
    limit = fused_losses.gradient_pool_limit()
    with fused_losses.limited_gradient_pool(0):  # nothing idle from earlier tests
        fused_losses.set_gradient_pool_limit(limit)
        yield


def loss_gradient(rows: int = ROWS, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The gradient of a mean cross-entropy and torch's own."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, CLASSES, generator=generator).to(dtype).requires_grad_()
    target = torch.randint(CLASSES, (rows,), generator=generator)
    (gradient,) = torch.autograd.grad(fused.cross_entropy(logits, target), logits)
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, target), logits)
    return gradient, expected


def test_a_freed_gradient_serves_the_next() -> None:
    gradient, _ = loss_gradient()
    address = gradient.data_ptr()
    del gradient
    assert _C.gradient_pool_idle_bytes() == ROWS * CLASSES * 4
    gradient, expected = loss_gradient(seed=1)
    assert gradient.data_ptr() == address
    assert _C.gradient_pool_idle_bytes() == 0
    torch.testing.assert_close(gradient, expected)


def test_live_gradients_never_share_memory() -> None:
    gradients = [loss_gradient(seed=seed) for seed in range(3)]
    views = [gradient[1:] for gradient, _ in gradients]
    kept = [(view, expected[1:]) for view, (_, expected) in zip(views, gradients, strict=True)]
    del gradients, views
    more = [loss_gradient(seed=seed) for seed in range(3, 6)]  # the views still hold the first three
    for gradient, expected in kept + more:
        torch.testing.assert_close(gradient, expected)


def test_what_is_idle_is_bounded() -> None:
    fused_losses.set_gradient_pool_limit(20 << 20)
    gradients = [loss_gradient()[0] for _ in range(4)]
    del gradients
    assert _C.gradient_pool_idle_bytes() == 16 << 20
    fused_losses.set_gradient_pool_limit(10 << 20)
    assert _C.gradient_pool_idle_bytes() == 8 << 20


def test_limit_zero_switches_it_off() -> None:
    fused_losses.set_gradient_pool_limit(0)
    gradient, expected = loss_gradient()
    torch.testing.assert_close(gradient, expected)
    del gradient
    assert _C.gradient_pool_idle_bytes() == 0


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(TypeError):
        fused_losses.set_gradient_pool_limit(-1)


def test_small_gradients_do_not_take_part() -> None:
    gradient, _ = loss_gradient(rows=64)
    del gradient
    assert _C.gradient_pool_idle_bytes() == 0


def test_memory_comes_in_whole_huge_pages() -> None:
    gradient, _ = loss_gradient(rows=384)  # 1.5 MiB
    del gradient
    assert _C.gradient_pool_idle_bytes() == 2 << 20


def test_other_sizes_take_what_nearly_fits() -> None:
    gradient, _ = loss_gradient()
    del gradient
    gradient, expected = loss_gradient(rows=ROWS - 100)
    assert _C.gradient_pool_idle_bytes() == 0
    torch.testing.assert_close(gradient, expected)
    del gradient
    _gradient, _ = loss_gradient(rows=ROWS // 2)
    assert _C.gradient_pool_idle_bytes() == 8 << 20  # twice as much as is needed: left alone


def losses_of_eight_mib() -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """For each kernel the fused loss and torch's, of logits of 8 MiB."""

    def of(name: str, input: Tensor, target: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        def run() -> tuple[Tensor, Tensor]:
            leaf = input.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(getattr(fused, name)(leaf, target), leaf)
            (expected,) = torch.autograd.grad(getattr(F, name)(leaf, target), leaf)
            return gradient, expected

        return run

    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2048, 1024, generator=generator)
    tiles = torch.randn(4, 32, 128, 128, generator=generator)
    few = torch.randn(1 << 18, 8, generator=generator)
    halves = torch.rand(2048, 1024, generator=generator)
    return {
        "rows": of("cross_entropy", rows, torch.randint(1024, (2048,), generator=generator)),
        "inner tiles": of("cross_entropy", tiles, torch.randint(32, (4, 128, 128), generator=generator)),
        "transposed tiles": of("cross_entropy", few, torch.randint(8, (1 << 18,), generator=generator)),
        "nll_loss": of("nll_loss", rows, torch.randint(1024, (2048,), generator=generator)),
        "binary_cross_entropy": of("binary_cross_entropy", halves, halves.flip(0)),
        "with_logits": of("binary_cross_entropy_with_logits", rows, halves),
    }


@pytest.mark.parametrize("kernel", losses_of_eight_mib())
def test_every_element_is_written(kernel: str) -> None:
    """What the memory held before is seen by nobody."""
    run = losses_of_eight_mib()[kernel]
    poisoned, _ = run()
    address = poisoned.data_ptr()
    poisoned.fill_(float("nan"))
    del poisoned
    gradient, expected = run()
    assert gradient.data_ptr() == address
    torch.testing.assert_close(gradient, expected)


def test_many_threads() -> None:
    failures: list[str] = []

    def work(seed: int) -> None:
        for step in range(5):
            gradient, expected = loss_gradient(seed=seed * 10 + step)
            if not torch.allclose(gradient, expected):
                failures.append(f"thread {seed}, step {step}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def _gradient_is_right(connection: object) -> None:
    torch.set_num_threads(1)
    gradient, expected = loss_gradient(seed=7)
    connection.send(bool(torch.allclose(gradient, expected)))  # type: ignore[attr-defined]


def test_a_forked_process_has_its_own() -> None:
    gradient, _ = loss_gradient()
    kept, expected = loss_gradient(seed=1)
    del gradient
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_gradient_is_right, args=(sending,))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    try:
        process.start()
        assert receiving.poll(60), "the forked process hangs"
        assert receiving.recv()
        process.join()
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(kept, expected)


def test_a_pooled_gradient_is_an_ordinary_tensor() -> None:
    gradient, expected = loss_gradient()
    gradient.mul_(2)
    torch.testing.assert_close(gradient, expected * 2)
    assert gradient.is_contiguous()
    assert gradient.storage_offset() == 0
    assert gradient.untyped_storage().nbytes() == ROWS * CLASSES * 4
    shared = gradient.clone().share_memory_()
    torch.testing.assert_close(shared, gradient)
    torch.testing.assert_close(gradient.share_memory_(), shared)
