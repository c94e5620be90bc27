"""What share of a device copy's speed the cross-entropy kernels reach on a GPU, from few classes to many.

    python -m benchmarks.gpu_kernels [--classes 1000 --classes 32000] [--json FILE]

Only the GPU's time counts: it is kept busy until the host has launched a sample's calls. The logits are ten times as
large as its cache. Where liger-kernel is installed it runs beside; its gradient goes over the logits, so that it gets
new ones outside the time.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fused_losses.functional
from benchmarks.cuda_device import why_unusable
from benchmarks.machine import describe

CLASSES = (
    *(2, 3, 5, 10, 21, 64, 100, 128, 255, 256, 512, 1000, 1024, 4096, 8192, 10000, 16384, 32000, 32768),
    *(50257, 65536, 128256, 151936, 256000),
)
LOGITS_BYTES = 2**29
CALLS, SAMPLES = 5, 7
SLEEP_CYCLES = 3_000_000  # about 2 ms

Call = Callable[[], object]


def gpu_seconds(prepare: Call, call: Call) -> float:
    """The median time of a call on the GPU, without that in which the host launches it."""
    times = []
    for _ in range(SAMPLES):
        prepare()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(CALLS):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3 / CALLS)
    return float(statistics.median(times))


def contenders() -> dict[str, Callable[..., Tensor]]:
    functions: dict[str, Callable[..., Tensor]] = {
        "fused": fused_losses.functional.cross_entropy,
        "torch": torch.nn.functional.cross_entropy,
    }
    try:
        from liger_kernel.transformers.functional import liger_cross_entropy

        functions["liger"] = liger_cross_entropy
    except ImportError:
        pass
    return functions


def step(loss_of: Callable[..., Tensor], logits: Tensor, target: Tensor) -> None:
    torch.autograd.grad(loss_of(logits, target), logits)  # `.backward()` would keep the gradient


def forward(loss_of: Callable[..., Tensor], logits: Tensor, target: Tensor) -> None:
    with torch.no_grad():
        loss_of(logits, target)


def speeds(classes: int, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """GB/s by pass and contender; "copy" is a device copy of as many bytes."""
    positions = LOGITS_BYTES // (classes * dtype.itemsize)
    original = torch.randn(positions, classes, dtype=dtype, device="cuda")
    logits = original.clone().requires_grad_()
    target = torch.randint(classes, (positions,), device="cuda")
    copy = torch.empty_like(original)
    moved = {"forward": original.nbytes + target.nbytes, "forward_backward": 2 * original.nbytes + target.nbytes}

    def renew() -> None:
        with torch.no_grad():
            logits.copy_(original)

    result: dict[str, dict[str, float]] = {}
    copied = 2 * original.nbytes / gpu_seconds(renew, lambda: copy.copy_(original)) * 1e-9
    for which, run in (("forward", forward), ("forward_backward", step)):
        result[which] = {"copy": copied}
        for name, loss_of in contenders().items():
            call = partial(run, loss_of, logits, target)
            renew()
            call()
            result[which][name] = moved[which] / gpu_seconds(renew, call) * 1e-9
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--classes", type=int, action="append", help="repeatable")
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16", "float16"), help="repeatable")
    parser.add_argument("--json", type=Path, help="where the figures go besides the screen")
    options = parser.parse_args(arguments)
    if reason := why_unusable():
        parser.error(reason)
    console = Console(width=160)
    rows: list[dict[str, Any]] = []
    report = {"machine": describe("cuda"), "GB/s": rows}
    names = ["copy", *contenders()]
    for dtype in options.dtype or ("bfloat16", "float32"):
        title = f"{torch.cuda.get_device_name()}, {dtype}: GB/s of the bytes that a loss must move"
        table = Table("classes", "pass", *names, "fused / copy", title=title)
        for classes in options.classes or CLASSES:
            for which, row in speeds(classes, getattr(torch, dtype)).items():
                rows.append({"dtype": dtype, "classes": classes, "pass": which, **row})
                cells = [f"{row[name]:.0f}" if name in row else "-" for name in names]
                table.add_row(str(classes), which, *cells, f"{row['fused'] / row['copy']:.0%}")
        console.print(table)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
