"""A table of what takes rows of logits: milliseconds, and multiples of one of them, by type and by pass."""

from __future__ import annotations

import argparse
from typing import Protocol

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.devices import add_device_argument, device_called
from benchmarks.measure import Task, measure_interleaved

__all__ = ["print_ratios"]


class Contenders(Protocol):
    """Their names and tasks, for these logits and targets."""

    def __call__(self, logits: Tensor, target: Tensor, *, backward: bool) -> dict[str, Task]: ...


def print_ratios(description: str | None, contenders: Contenders, *, base: str, arguments: list[str] | None) -> None:
    """The command of a benchmark: ``--rows``, ``--classes``, ``--min-time``, ``--device``."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=32000)
    parser.add_argument("--min-time", type=float, default=1.0, help="seconds for each contender")
    add_device_argument(parser)
    options = parser.parse_args(arguments)
    device = device_called(options.device, parser)
    on = f"{torch.get_num_threads()} threads" if options.device == "cpu" else torch.cuda.get_device_name()
    title = f"{options.rows} x {options.classes}, {on}: ms, and multiples of {base}"
    table = Table("dtype", "pass", *contenders(torch.empty(0), torch.empty(0), backward=False), title=title)
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.randn(options.rows, options.classes, device=device.tensors).to(dtype).requires_grad_()
        target = torch.randint(options.classes, (options.rows,), device=device.tensors)
        for backward in (False, True):
            tasks = contenders(logits, target, backward=backward)
            times = measure_interleaved(tasks, device, min_seconds_per_task=options.min_time, min_rounds=3)
            cells = [f"{t.median * 1e3:.3g} ({t.median / times[base].median:.2f})" for t in times.values()]
            table.add_row(str(dtype)[6:], "forward + backward" if backward else "forward", *cells)
    Console(width=160).print(table)
