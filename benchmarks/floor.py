"""The least time a case can take: moving its bytes once, with memory that was touched before.

Forward alone must read the logits; forward and backward must read them and write a gradient as large. A target of the
logits' shape is read once more. Class indices are left out of the floor, which makes it a little stricter than the
truth where there are few classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.inputs import Inputs
from benchmarks.measure import Task
from benchmarks.results import Pass


def floor_tasks(case: Case, rotation: list[Inputs]) -> dict[Pass, Task]:
    """For each pass, the task that moves the bytes and computes nothing of use."""
    forward, forward_backward = [], []
    for inputs in rotation:
        read_target = _warm_read(inputs.target) if case.target_is_elementwise else None
        forward.append(_in_sequence(_warm_read(inputs.logits), read_target))
        forward_backward.append(_in_sequence(_warm_copy(inputs.logits), read_target))
    return {"forward": Task(forward), "forward_backward": Task(forward_backward)}


def _warm_copy(source: Tensor) -> Callable[[], object]:
    logits = source.detach()
    gradient = torch.zeros_like(logits)  # written here, so that no page of it faults in the timed region
    return lambda: gradient.copy_(logits)


def _warm_read(source: Tensor) -> Callable[[], object]:
    """The maximum of the bytes taken as int32, the fastest read that torch has and one for all dtypes.

    Of some twenty reductions tried on float32, bfloat16 and float16, within the cache and beyond it, none was faster.
    The float32 sum is as fast; a 16-bit sum or maximum is bound by conversions (a quarter to a half of the speed), and
    a sum of 16-bit pairs taken as float32 would meet denormal numbers. `max()` is slower than `amax()`.
    """
    in_memory_order = source.detach().as_strided((source.numel(),), (1,))  # the tensors of all cases are dense
    elements_per_word = 4 // source.element_size()
    return in_memory_order[: source.numel() // elements_per_word * elements_per_word].view(torch.int32).amax


def _in_sequence(first: Callable[[], object], second: Callable[[], object] | None) -> Callable[[], object]:
    if second is None:
        return first
    then = second

    def both() -> None:
        first()
        then()

    return both
