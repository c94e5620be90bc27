"""A stand-in for `torch.cuda`: calls are counted, time passes when the test says so. Tensors are on the CPU."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from benchmarks.cases import Case
from benchmarks.cuda_device import CudaDevice

CACHE_BYTES = 4096
SMALL = Case("cross_entropy", (64, 100))


@dataclass
class StandIn:
    """Stands for `torch.cuda`: a clock in ms, allocated bytes and their peak, and what happened, in order."""

    clock_ms: float = 0.0
    allocated: int = 0
    peak: int = 0
    log: list[str] = field(default_factory=list)

    def synchronize(self):
        self.log.append("synchronize")

    def allocate(self, count):
        self.allocated += count
        self.peak = max(self.peak, self.allocated)

    def forget_peak(self):
        self.peak = self.allocated

    def call(self, name, milliseconds):
        """A call that takes that long and writes itself into the log."""

        def made():
            self.log.append(name)
            self.clock_ms += milliseconds

        return made


def make_gpu(monkeypatch):
    """A device whose tensors are on the CPU, above a stand-in for `torch.cuda`: `gpu.device` and `gpu.cuda`."""
    stand_in = StandIn()

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.ms, self.is_over = None, False

        def record(self):
            stand_in.log.append("record")
            self.ms = stand_in.clock_ms

        def synchronize(self):
            stand_in.log.append("wait")
            self.is_over = True

        def elapsed_time(self, end):
            assert end.is_over, "the end has not been waited for"
            return end.ms - self.ms

    properties = SimpleNamespace(
        L2_cache_size=CACHE_BYTES, major=9, minor=0, multi_processor_count=132, total_memory=2**36, uuid="1234-abcd"
    )
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", stand_in.synchronize)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: stand_in.allocated)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: stand_in.peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", stand_in.forget_peak)
    device = CudaDevice(tensors="cpu")
    device._other_data = SimpleNamespace(amax=stand_in.call("fill cache", 50.0), nbytes=device._other_data.nbytes)
    return SimpleNamespace(device=device, cuda=stand_in)
