"""Times several tasks in turn, one sample each per round, so that a slow minute of the machine hits all of them."""

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Measurement, TaskSpec

# Long against the clock's resolution (under 100 ns) and yet so short that only calls whose gradient lives on the heap
# share a sample: in a shared sample, freeing the last call's gradient is part of the next call.
SAMPLE_SECONDS = 1e-3
MAX_CALLS_PER_SAMPLE = 100_000
WARMUP_CALLS = 2


def nothing() -> None:
    """The `before_sample` of a task that needs no preparation."""


@dataclass(frozen=True)
class Task:
    """Something to time: `calls` are taken in turn, `before_sample` runs before each sample and is not timed."""

    calls: Sequence[Callable[[], object]]
    before_sample: Callable[[], None] = nothing
    one_call_per_sample: bool = False


def measure_interleaved(
    tasks: Mapping[str, Task], device: str, *, min_seconds_per_task: float, min_rounds: int
) -> dict[str, Measurement]:
    """Samples of every task, all with the same number of rounds."""
    sample_seconds = _sample_seconds_on_cuda if device == "cuda" else _sample_seconds_on_cpu
    names = list(tasks)
    for task in tasks.values():
        for _ in range(WARMUP_CALLS):
            sample_seconds(task, len(task.calls))
    calls = {name: _calls_per_sample(task, sample_seconds) for name, task in tasks.items()}

    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _garbage_collector_off():
        deadline = time.perf_counter() + min_seconds_per_task * len(tasks)
        for round_index in itertools.count():
            if round_index >= min_rounds and time.perf_counter() >= deadline:
                break
            # The order rotates, so that no task always inherits the caches of the same other one.
            first = round_index % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(sample_seconds(tasks[name], calls[name]))

    threads = torch.get_num_threads()
    return {
        name: Measurement(calls[name], seconds[name], TaskSpec(stmt=name, setup="", num_threads=threads))
        for name in names
    }


def _calls_per_sample(task: Task, sample_seconds: Callable[[Task, int], float]) -> int:
    calls = 1
    while (
        not task.one_call_per_sample and calls < MAX_CALLS_PER_SAMPLE and sample_seconds(task, calls) < SAMPLE_SECONDS
    ):
        calls *= 2
    return calls


def _sample_seconds_on_cpu(task: Task, calls: int) -> float:
    task.before_sample()
    # islice and cycle run in C: the loop adds some 20 ns a call.
    in_turn = itertools.islice(itertools.cycle(task.calls), calls)
    start = time.perf_counter()
    for call in in_turn:
        call()
    return time.perf_counter() - start


def _sample_seconds_on_cuda(task: Task, calls: int) -> float:
    task.before_sample()
    in_turn = itertools.islice(itertools.cycle(task.calls), calls)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    for call in in_turn:
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
