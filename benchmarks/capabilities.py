"""Times the kernels of every instruction set on data that stays in the caches, where arithmetic is the limit.

    python -m benchmarks.capabilities

One thread, the operators without autograd, loss and gradient in one call, a few dozen kilobytes to a megabyte.
"""

from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.cpu_device import CpuDevice
from benchmarks.measure import Task, measure_interleaved
from fused_losses import _C, _ops

MIN_SECONDS = 0.3
MIN_ROUNDS = 15


def calls() -> dict[str, tuple[Callable[[], object], int]]:
    """Name of a cell, the call, and how many elements it works on."""
    generator = torch.Generator().manual_seed(0)

    def cross_entropy(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Callable[[], object], int]:
        logits = torch.randn(shape, generator=generator).to(dtype)
        target = torch.randint(shape[1], shape[:1] + shape[2:], generator=generator)
        call = partial(_ops.cross_entropy_with_gradient, logits, target, None, 1.0, 1, -100, 0.0, False)
        return call, logits.numel()

    def binary(loss: Callable[..., tuple[Tensor, Tensor]], *weights: None) -> tuple[Callable[[], object], int]:
        input = torch.rand(65536, generator=generator)
        return partial(loss, input, torch.rand(65536, generator=generator), *weights, 1), input.numel()

    return {
        "cross_entropy 8192 x 2": cross_entropy(8192, 2),
        "cross_entropy 4096 x 10": cross_entropy(4096, 10),
        "cross_entropy 1024 x 64": cross_entropy(1024, 64),
        "cross_entropy 64 x 1000": cross_entropy(64, 1000),
        "cross_entropy 64 x 1000, bfloat16": cross_entropy(64, 1000, dtype=torch.bfloat16),
        "cross_entropy 64 x 1000, float16": cross_entropy(64, 1000, dtype=torch.float16),
        "cross_entropy 64 x 1000, float64": cross_entropy(64, 1000, dtype=torch.float64),
        "cross_entropy 1 x 21 x 64 x 64": cross_entropy(1, 21, 64, 64),
        "binary_cross_entropy 65536": binary(_ops.binary_cross_entropy_with_gradient, None),
        "binary_cross_entropy_with_logits 65536": binary(
            _ops.binary_cross_entropy_with_logits_with_gradient, None, None
        ),
    }


def nanoseconds_per_element(call: Callable[[], object], numel: int, capabilities: list[str]) -> dict[str, float]:
    """Medians of interleaved samples, for each instruction set."""
    tasks = {name: Task([call], before_sample=partial(_C.set_cpu_capability, name)) for name in capabilities}
    measurements = measure_interleaved(tasks, CpuDevice(), min_seconds_per_task=MIN_SECONDS, min_rounds=MIN_ROUNDS)
    return {name: measurement.median * 1e9 / numel for name, measurement in measurements.items()}


def main() -> None:
    capabilities = _C.available_cpu_capabilities()
    best = capabilities[-1]
    table = Table(title="ns per element, loss and gradient, one thread; in brackets the speed against the best set")
    table.add_column("cell")
    for name in capabilities:
        table.add_column(name, justify="right")
    torch.set_num_threads(1)
    in_use = _C.cpu_capability()
    try:
        for cell, (call, numel) in track(calls().items(), description="instruction sets"):
            times = nanoseconds_per_element(call, numel, capabilities)
            table.add_row(cell, *(f"{times[name]:.3f} ({times[best] / times[name]:.2f})" for name in capabilities))
    finally:
        _C.set_cpu_capability(in_use)
    Console().print(table)


if __name__ == "__main__":
    main()
