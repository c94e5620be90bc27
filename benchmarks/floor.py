"""The least time a case can take: moving its bytes once, with memory that was touched before.

Forward alone must read the logits; forward and backward must read them and write a gradient as large. A target of the
logits' shape is read once more. On the CPU, class indices are left out of the floor, which makes it a little stricter
than the truth where there are few classes, and NLL is held to the logits although it needs one of them a position.

On a GPU the floor is a copy by the driver, the fastest way to move bytes that is at hand, of exactly `bytes_moved`.
"""

from collections.abc import Callable
from functools import partial

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


def bytes_moved(case: Case, inputs: Inputs) -> dict[Pass, int]:
    """What a loss cannot do without: the logits and the target read once, the gradient written once.

    What all rows share, such as class weights, is left out, and so are the sums.
    """
    # NLL needs one of the logits a position, for the loss; its gradient depends on the target alone.
    logits_read = inputs.target.numel() if case.takes_log_probabilities else inputs.logits.numel()
    read = logits_read * inputs.logits.element_size() + inputs.target.numel() * inputs.target.element_size()
    return {"forward": read, "forward_backward": read + inputs.logits_bytes}


def copy_floor_tasks(case: Case, rotation: list[Inputs]) -> dict[Pass, Task]:
    """For each pass, copies that move as many bytes as the loss must, half of them read and half of them written."""
    tasks: dict[Pass, list[Callable[[], object]]] = {"forward": [], "forward_backward": []}
    for inputs in rotation:
        moved = bytes_moved(case, inputs)
        source = torch.zeros(max(moved.values()) // 2, dtype=torch.uint8, device=inputs.logits.device)
        destination = torch.zeros_like(source)
        for which, calls in tasks.items():
            half = moved[which] // 2
            calls.append(partial(destination[:half].copy_, source[:half]))
    return {which: Task(calls) for which, calls in tasks.items()}


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
