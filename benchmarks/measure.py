"""Times several tasks in turn, one sample each per round, so that a slow minute of the machine hits all of them."""

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Measurement, TaskSpec

from benchmarks.device import Call, Device

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

    calls: Sequence[Call]
    before_sample: Callable[[], None] = nothing
    each_call_once: bool = False  # in a sample: a call spends what `before_sample` prepared for it


def measure_interleaved(
    tasks: Mapping[str, Task], device: Device, *, min_seconds_per_task: float, min_rounds: int
) -> dict[str, Measurement]:
    """Samples of every task, all with the same number of rounds."""
    names = list(tasks)
    for task in tasks.values():
        for _ in range(WARMUP_CALLS):
            _sample_seconds(task, device, len(task.calls))
    calls = {name: _calls_per_sample(task, device) for name, task in tasks.items()}

    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _garbage_collector_off():
        deadline = time.perf_counter() + min_seconds_per_task * len(tasks)
        for round_index in itertools.count():
            if round_index >= min_rounds and time.perf_counter() >= deadline:
                break
            # The order rotates, so that no task always inherits the caches of the same other one.
            first = round_index % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(_sample_seconds(tasks[name], device, calls[name]))

    threads = torch.get_num_threads()
    return {
        name: Measurement(calls[name], seconds[name], TaskSpec(stmt=name, setup="", num_threads=threads))
        for name in names
    }


def _calls_per_sample(task: Task, device: Device) -> int:
    most = len(task.calls) if task.each_call_once else MAX_CALLS_PER_SAMPLE
    calls = 1
    while calls < most and _sample_seconds(task, device, calls) < SAMPLE_SECONDS:
        calls = min(2 * calls, most)
    return calls


def _sample_seconds(task: Task, device: Device, calls: int) -> float:
    task.before_sample()
    # islice and cycle run in C: the loop adds some 20 ns a call.
    return device.seconds(itertools.islice(itertools.cycle(task.calls), calls))


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
