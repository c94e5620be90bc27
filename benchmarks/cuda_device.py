"""Time and memory of calls on an NVIDIA GPU.

Note [Cold caches]: in training the logits come from a layer whose weights went through the second-level cache after
them, while a loop over one small tensor finds it there. So the inputs rotate, and those of one rotation are together
several times as large as the cache (`inputs.py`), and the cache is filled with something else before every sample. It
is filled by reading: after writing, the timed calls would have to carry the written lines to memory.
"""

from collections.abc import Iterable, Sequence

import torch

import fused_losses
from benchmarks.cases import Case
from benchmarks.device import Call

# The cache does not drop what is oldest exactly, so once its size is not enough.
CACHE_SIZES_TO_BE_COLD = 3


def why_unusable() -> str | None:
    """A sentence that tells why nothing can be measured on a GPU here; None if it can."""
    if not torch.cuda.is_available():
        what = "finds no GPU or no driver" if torch.version.cuda else "is built without CUDA"
        return f"torch {torch.__version__} {what} (torch.cuda.is_available() is false)"
    if not fused_losses.is_cuda_available():
        return (
            "fused_losses has no CUDA kernels loaded (fused_losses.is_cuda_available() is false): it was built without"
        )
    return None


def split_by_free_memory(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """The cases for which the GPU has memory, and the others."""
    free_bytes, _ = torch.cuda.mem_get_info()
    fitting = [case for case in cases if case.gpu_bytes <= free_bytes]
    return fitting, [case for case in cases if case not in fitting]


class CudaDevice:
    """The current GPU. `tensors` is another device where a test fakes `torch.cuda`."""

    def __init__(self, tensors: str = "cuda") -> None:
        self.tensors = tensors
        self.cold_bytes = CACHE_SIZES_TO_BE_COLD * torch.cuda.get_device_properties().L2_cache_size
        self._other_data = torch.zeros(self.cold_bytes, dtype=torch.uint8, device=tensors).view(torch.int32)

    def seconds(self, calls: Iterable[Call]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        self._other_data.amax()  # not waited for: meanwhile the first call gets into the queue
        start.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def peak_bytes(self, call: Call) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
