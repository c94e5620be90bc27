"""Time and memory of calls on the CPU.

The profiler's allocation events are summed in time order. That counts exactly the bytes torch's allocator hands out,
also to C++ operators and compiled code, which allocate their tensors through it. The resident set (VmHWM) was not
chosen: glibc keeps freed blocks, huge pages round up to 2 MiB, and both depend on what ran before. What the events do
not see is scratch space that a kernel takes from malloc or the stack, some KiB per thread. For tensors of 30 to 65 MB
the two methods agreed within 0.2 %.
"""

import time
from collections.abc import Iterable

from torch.profiler import ProfilerActivity, profile

from benchmarks.device import Call


class CpuDevice:
    tensors = "cpu"
    # The last-level cache is as warm in training, where the logits were just written.
    cold_bytes = 0

    def seconds(self, calls: Iterable[Call]) -> float:
        start = time.perf_counter()
        for call in calls:
            call()
        return time.perf_counter() - start

    def peak_bytes(self, call: Call) -> int | None:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            call()
        profiler = recorded.profiler
        if profiler is None or profiler.kineto_results is None:
            return None
        allocations = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
        if not allocations:
            return None
        live_bytes = peak_bytes = 0
        for event in sorted(allocations, key=lambda event: event.start_ns()):
            live_bytes += event.nbytes()  # negative when memory is freed
            peak_bytes = max(peak_bytes, live_bytes)
        return peak_bytes
