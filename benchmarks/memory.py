"""Peak memory that one call takes beyond what was allocated before it; each device has its own way to count it.

The pool of gradient memory of fused_losses, which no counter sees, is off meanwhile.
"""

import fused_losses
from benchmarks.device import Device
from benchmarks.measure import Task


def peak_extra_bytes(task: Task, device: Device) -> int | None:
    """Peak of one call, made after a warm-up; None where this torch reports no allocations."""
    with fused_losses.limited_gradient_pool(0):
        task.before_sample()
        task.calls[0]()
        task.before_sample()
        return device.peak_bytes(task.calls[0])
