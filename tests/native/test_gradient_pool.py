"""Memory of large gradients that is kept for the next one: csrc/ops/gradient_pool.h."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torch_abilities
from compilation import COMPILER, emulation_unavailable
from torch import Tensor

import fused_losses
from fused_losses import _C
from fused_losses import functional as fused

ROWS, CLASSES = 2048, 1024  # 8 MiB of float32
MIB = 1 << 20

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the pool is Linux's MADV_FREE"),
    pytest.mark.skipif(
        not torch_abilities.makes_tensors_over_memory(), reason="this torch makes no tensors over memory of ours"
    ),
]


@pytest.fixture(autouse=True)
def default_limit() -> Iterator[None]:
    limit = fused_losses.gradient_pool_limit()
    with fused_losses.limited_gradient_pool(0):
        assert _C.gradient_pool_idle_bytes() == 0  # nothing from earlier tests
    yield
    fused_losses.set_gradient_pool_limit(limit)
    assert fused_losses.gradient_pool_limit() == limit  # no block is open any more


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


@pytest.mark.parametrize(
    "rows",
    [
        300,  # 1.2 MiB: less than a huge page
        511,  # nearly one
        640,  # 2.5 MiB: one and a small rest
        2049,  # four and a single page
    ],
)
def test_memory_comes_in_whole_small_pages(rows: int) -> None:
    gradient, _ = loss_gradient(rows=rows)
    del gradient
    assert _C.gradient_pool_idle_bytes() == rows * CLASSES * 4


def test_other_sizes_take_what_nearly_fits() -> None:
    gradient, _ = loss_gradient()
    del gradient
    gradient, expected = loss_gradient(rows=ROWS - 100)
    assert _C.gradient_pool_idle_bytes() == 0
    torch.testing.assert_close(gradient, expected)
    del gradient
    _gradient, _ = loss_gradient(rows=ROWS * 7 // 8)
    assert _C.gradient_pool_idle_bytes() == 8 << 20  # an eighth of it would be wasted, a seventh of what is needed


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


def run_python(code: str, **environment: str) -> str:
    """What a program with the names of this file prints."""
    preamble = f"""
        import resource, signal, sys, threading, os
        sys.path[:0] = {sys.path!r}
        import torch, fused_losses
        from fused_losses import _C, functional as fused
        torch.set_num_threads(1)
        MIB = 1 << 20

        def gradient(mebibytes):
            logits = torch.zeros(int(mebibytes * 256), 1024, requires_grad=True)
            target = torch.zeros(len(logits), dtype=torch.long)
            return torch.autograd.grad(fused.cross_entropy(logits, target), logits)[0]

        def status(name):  # of /proc/self/status, in bytes
            with open("/proc/self/status") as lines:
                return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
    """
    program = textwrap.dedent(preamble) + textwrap.dedent(code)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("limit", ["RLIMIT_AS", pytest.param("RLIMIT_DATA", marks=pytest.mark.slow)])
def test_idle_memory_is_in_nobodys_way_where_the_address_space_is_limited(limit: str) -> None:
    """Room for three tensors of 256 MiB: the logits, their gradient and another. An idle gradient would be a fourth."""
    run_python(f"""
        used = status("VmSize" if "{limit}" == "RLIMIT_AS" else "VmData")
        resource.setrlimit(resource.{limit}, (used + 700 * MIB, resource.RLIM_INFINITY))
        for _ in range(3):
            gradient(256)
            assert _C.gradient_pool_idle_bytes() == 0
        torch.empty(600 * MIB, dtype=torch.uint8)
    """)


@pytest.mark.slow
def test_a_limit_set_later_empties_the_pool() -> None:
    run_python("""
        kept = gradient(64)
        gradient(64)
        assert _C.gradient_pool_idle_bytes() == 64 * MIB
        used = status("VmSize")
        resource.setrlimit(resource.RLIMIT_AS, (used + 200 * MIB, resource.RLIM_INFINITY))
        del kept
        assert _C.gradient_pool_idle_bytes() == 0
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        gradient(64)
        assert _C.gradient_pool_idle_bytes() == 64 * MIB
    """)


def compile_library(source: str, target: Path) -> str:
    if emulation_unavailable() is not None:
        pytest.skip(f"nothing can be compiled: {emulation_unavailable()}")
    subprocess.run(
        [*COMPILER, "-shared", "-fPIC", "-x", "c++", "-", "-o", str(target)], input=source, text=True, check=True
    )
    return str(target)


@pytest.mark.slow
def test_strict_overcommit_switches_it_off(tmp_path: Path) -> None:
    """The file that tells is another here, since the machine's own setting is everybody's."""
    library = compile_library(
        r"""
        #include <cstring>
        #include <dlfcn.h>
        #include <stdio.h>
        extern "C" FILE* fopen(const char* path, const char* mode) {
          static char strict[] = "2\n";
          if (strcmp(path, "/proc/sys/vm/overcommit_memory") == 0) return fmemopen(strict, 2, "r");
          return reinterpret_cast<FILE* (*)(const char*, const char*)>(dlsym(RTLD_NEXT, "fopen"))(path, mode);
        }
        extern "C" FILE* fopen64(const char* path, const char* mode) { return fopen(path, mode); }
        """,
        tmp_path / "strict_overcommit.so",
    )
    code = "gradient(8); print(_C.gradient_pool_idle_bytes())"
    assert int(run_python(code, LD_PRELOAD=library)) == 0


@pytest.mark.slow
def test_a_refused_allocation_gets_what_is_idle(tmp_path: Path) -> None:
    """The system lets a process map a certain number of bytes in large pieces, counted here."""
    library = compile_library(
        """
        #include <dlfcn.h>
        #include <errno.h>
        #include <stdlib.h>
        #include <sys/mman.h>
        static const size_t kLarge = 16 << 20;
        static long mapped;
        static bool is_on() { return getenv("FEW_MAPPINGS") != nullptr; }
        extern "C" void* mmap(void* address, size_t bytes, int protection, int flags, int file, off_t offset) {
          if (is_on() && bytes >= kLarge && (flags & MAP_ANONYMOUS)) {
            if (mapped + long(bytes) > 100l << 20) { errno = ENOMEM; return MAP_FAILED; }
            mapped += bytes;
          }
          using Map = void* (*)(void*, size_t, int, int, int, off_t);
          static const Map real = reinterpret_cast<Map>(dlsym(RTLD_NEXT, "mmap"));
          return real(address, bytes, protection, flags, file, offset);
        }
        extern "C" int munmap(void* address, size_t bytes) {
          if (is_on() && bytes >= kLarge) mapped -= bytes;
          static const auto real = reinterpret_cast<int (*)(void*, size_t)>(dlsym(RTLD_NEXT, "munmap"));
          return real(address, bytes);
        }
        """,
        tmp_path / "few_mappings.so",
    )
    code = """
        logits = [torch.zeros(size * 256, 1024, requires_grad=True) for size in (40, 80)]
        os.putenv("FEW_MAPPINGS", "1")  # torch's own memory comes from the C library, whose calls are not seen
        for leaf in logits:
            target = torch.zeros(len(leaf), dtype=torch.long)
            torch.autograd.grad(fused.cross_entropy(leaf, target), leaf)
            print(_C.gradient_pool_idle_bytes() // MIB)
    """
    assert run_python(code, LD_PRELOAD=library).split() == ["40", "80"]


@pytest.mark.parametrize("mebibytes", [1.06, pytest.param(2.5, marks=pytest.mark.slow)])
def test_many_small_gradients_hold_what_torchs_hold(mebibytes: float) -> None:
    held = run_python(f"""
        logits = torch.zeros(int({mebibytes} * 256), 1024, requires_grad=True)
        target = torch.zeros(len(logits), dtype=torch.long)

        def gradient():
            return torch.autograd.grad(fused.cross_entropy(logits, target), logits)[0]

        gradient()
        before = status("RssAnon")
        gradients = [gradient() for _ in range(200)]
        held = status("RssAnon") - before
        print(held / sum(it.nbytes for it in gradients))
    """)
    assert float(held) < 1.1


@pytest.mark.slow
def test_little_idle_memory_is_kept_from_the_system() -> None:
    """The small pages at the end, which are not marked MADV_FREE."""
    sizes = run_python("""
        gradients = [gradient(1.5) for _ in range(100)]
        gradients.clear()
        print(_C.gradient_pool_idle_bytes())
        with open("/proc/self/smaps_rollup") as lines:
            print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("LazyFree")))
    """)
    idle, free = map(int, sizes.split())
    assert idle == 150 * MIB
    assert 130 * MIB < free < 150 * MIB


def test_blocks_of_two_threads_overlap() -> None:
    """The first to begin ends first: with a limit that each restores, that of the second would stay for good."""
    limit = fused_losses.gradient_pool_limit()
    first_is_open, second_is_open, first_has_ended = (threading.Event() for _ in range(3))
    seen: list[int] = []

    def first() -> None:
        with fused_losses.limited_gradient_pool(0):
            first_is_open.set()
            second_is_open.wait(60)
        first_has_ended.set()

    def second() -> None:
        first_is_open.wait(60)
        with fused_losses.limited_gradient_pool(64 * MIB):
            seen.append(fused_losses.gradient_pool_limit())
            second_is_open.set()
            first_has_ended.wait(60)
            seen.append(fused_losses.gradient_pool_limit())

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [0, 64 * MIB]
    assert fused_losses.gradient_pool_limit() == limit


def test_nested_blocks_the_smallest_limit_holds() -> None:
    limit = fused_losses.gradient_pool_limit()
    with fused_losses.limited_gradient_pool(2 * limit):
        assert fused_losses.gradient_pool_limit() == 2 * limit
        with fused_losses.limited_gradient_pool(MIB):
            with fused_losses.limited_gradient_pool(2 * MIB):
                assert fused_losses.gradient_pool_limit() == MIB
            assert fused_losses.gradient_pool_limit() == MIB
        assert fused_losses.gradient_pool_limit() == 2 * limit
    assert fused_losses.gradient_pool_limit() == limit


def test_a_block_that_raises_ends() -> None:
    limit = fused_losses.gradient_pool_limit()
    with pytest.raises(KeyError), fused_losses.limited_gradient_pool(0):
        raise KeyError
    with pytest.raises(TypeError), fused_losses.limited_gradient_pool(-1):
        pass
    assert fused_losses.gradient_pool_limit() == limit


def test_a_limit_set_inside_a_block_holds_when_the_last_ends() -> None:
    with fused_losses.limited_gradient_pool(MIB):
        with fused_losses.limited_gradient_pool(2 * MIB):
            fused_losses.set_gradient_pool_limit(3 * MIB)
            assert fused_losses.gradient_pool_limit() == MIB
        assert fused_losses.gradient_pool_limit() == MIB
    assert fused_losses.gradient_pool_limit() == 3 * MIB


def test_the_limit_and_what_is_idle_are_true_while_threads_are_busy() -> None:
    limit = fused_losses.gradient_pool_limit()
    kept, _ = loss_gradient(rows=4 * ROWS)
    del kept  # larger than what the threads take
    stop = threading.Event()

    def work() -> None:
        logits = torch.zeros(512, 1024, requires_grad=True)
        target = torch.zeros(512, dtype=torch.long)
        while not stop.is_set():
            torch.autograd.grad(fused.cross_entropy(logits, target), logits)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        seen = [(fused_losses.gradient_pool_limit(), _C.gradient_pool_idle_bytes()) for _ in range(20_000)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {it[0] for it in seen} == {limit}
    assert min(it[1] for it in seen) >= 32 * MIB


def test_forks_amid_busy_threads_never_hang() -> None:
    """Whatever another thread did at the time of the fork, the new process computes and changes the limit."""
    run_python("""
        # Torch initialises its statics in the first call that needs them, and the loader a thread's memory in its first
        # call of a library: who is forked meanwhile waits for ever.
        gradient(1.5)
        gradient(2)
        stop = threading.Event()
        all_at_work = threading.Barrier(4)

        def work():
            with fused_losses.limited_gradient_pool(64 * MIB):
                gradient(1.5)
            all_at_work.wait()
            while not stop.is_set():
                with fused_losses.limited_gradient_pool(64 * MIB):
                    gradient(1.5)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        all_at_work.wait()
        fused_losses.set_gradient_pool_limit(MIB << 4)
        statuses = []
        for _ in range(50):
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # what hangs ends
                # The threads that had opened blocks are not here, so their blocks are not either.
                right = fused_losses.gradient_pool_limit() == MIB << 4
                right &= _C.gradient_pool_idle_bytes() == 0
                right &= gradient(2).shape == (512, 1024)
                right &= _C.gradient_pool_idle_bytes() == 2 * MIB
                fused_losses.set_gradient_pool_limit(0)
                right &= fused_losses.gradient_pool_limit() == _C.gradient_pool_idle_bytes() == 0
                os._exit(0 if right else 1)
            statuses.append(os.waitpid(child, 0)[1])
        stop.set()
        assert not any(statuses), statuses
    """)


@pytest.mark.slow
def test_a_block_around_a_fork_ends_in_both_processes() -> None:
    run_python("""
        limit = fused_losses.gradient_pool_limit()
        with fused_losses.limited_gradient_pool(MIB):
            child = os.fork()
            assert fused_losses.gradient_pool_limit() == MIB
        assert fused_losses.gradient_pool_limit() == limit
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    """)


def test_the_memory_profiler_sees_gradients_with_the_pool_off() -> None:
    """With it, it does not: torch is told of memory by a function that no stable interface has."""

    def seen() -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            loss_gradient()
        events = [it for it in profile.events() if it.name.startswith("fused_losses::")]
        assert events
        return sum(it.cpu_memory_usage for it in events)

    with fused_losses.limited_gradient_pool(0):
        assert seen() >= ROWS * CLASSES * 4


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
