"""What share of a device copy's speed the kernels reach on a GPU, from few classes to many.

    python -m benchmarks.gpu_kernels [--filter 32000 --filter smoothing] [--json FILE]
    python -m benchmarks.gpu_kernels --markdown benchmarks/results/h200-kernels*.json

Only the GPU's time counts: it is kept busy until the host has launched a sample's calls. The logits are several times
as large as its cache. "torch" is eager; the other fused losses of `peers.py` run beside where they are installed.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional
from rich.console import Console
from torch import Tensor

import fused_losses.functional
from benchmarks.cases import Case, Dtype, Scale
from benchmarks.contenders import scaled
from benchmarks.cuda_device import why_unusable
from benchmarks.floor import bytes_moved
from benchmarks.inputs import Inputs, build
from benchmarks.machine import describe
from benchmarks.peers import PEERS

CLASSES = (
    *(2, 3, 10, 21, 64, 100, 128, 255, 256, 512, 1000, 1024, 2048, 4096, 8192, 16384, 32000, 32768),
    *(50257, 65536, 128256, 151936, 256000),
)
SCALES: tuple[Scale, ...] = ("constant", "changing")
LOGITS_BYTES = 2**29
MIN_CLASSES_OF_PEERS = 1000  # liger-kernel has a program a row: with fewer it takes seconds
CALLS, SAMPLES = 4, 5
SLEEP_CYCLES = 4_000_000  # about two milliseconds

Call = Callable[[], object]


def cases() -> Iterator[Case]:
    dtypes: tuple[Dtype, ...] = ("bfloat16", "float32")
    for dtype in dtypes:
        size = 4 if dtype == "float32" else 2
        for classes in CLASSES:
            yield Case("cross_entropy", (LOGITS_BYTES // (classes * size), classes), dtype)
        for classes in (1000, 32000):
            rows = LOGITS_BYTES // (classes * size)
            yield Case("cross_entropy", (rows, classes), dtype, label_smoothing=0.1)
            yield Case("cross_entropy", (rows, classes), dtype, label_smoothing=0.1, class_weight=True)
            yield Case("cross_entropy", (rows, classes), dtype, probability_target=True)
        for scale in SCALES:  # whose grad_output the host does not know
            yield Case("cross_entropy", (LOGITS_BYTES // (32000 * size), 32000), dtype, scale=scale)
            yield Case("binary_cross_entropy_with_logits", (LOGITS_BYTES // size,), dtype, scale=scale)
        for classes, side in ((19, 1024), (21, 256), (21, 512), (150, 512)):
            batch = max(1, LOGITS_BYTES // (classes * side * side * size)) if side > 256 else 8
            yield Case("cross_entropy", (batch, classes, side, side), dtype)
        yield Case("nll_loss", (LOGITS_BYTES // (1000 * size), 1000), dtype)
        yield Case("binary_cross_entropy", (LOGITS_BYTES // size,), dtype)
        yield Case("binary_cross_entropy_with_logits", (LOGITS_BYTES // size,), dtype)
        yield Case("binary_cross_entropy_with_logits", (LOGITS_BYTES // (80 * size), 80), dtype, pos_weight=True)


def gpu_seconds(call: Call) -> float:
    """The median time of a call on the GPU, without that in which the host launches it."""
    call()
    times = []
    for _ in range(SAMPLES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(CALLS):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3 / CALLS)
    return float(statistics.median(times))


def contenders(case: Case) -> dict[str, Callable[..., Tensor]]:
    functions: dict[str, Callable[..., Tensor]] = {
        "fused": getattr(fused_losses.functional, case.loss),
        "torch": getattr(torch.nn.functional, case.loss),
    }
    for peer in PEERS:
        if peer.lacking(case) or case.shape[1] < MIN_CLASSES_OF_PEERS:
            continue
        with suppress(ImportError):
            functions[peer.name] = peer.load()
    return {name: scaled(function, case.scale) for name, function in functions.items()}


def step(loss_of: Callable[..., Tensor], inputs: Inputs) -> None:
    # `.backward()` would keep the gradient. liger-kernel's gradient takes the logits' place, which changes no time.
    torch.autograd.grad(loss_of(inputs.logits, inputs.target, **inputs.options), inputs.logits)


def forward(loss_of: Callable[..., Tensor], inputs: Inputs) -> None:
    with torch.no_grad():
        loss_of(inputs.logits, inputs.target, **inputs.options)


def speeds(case: Case) -> dict[str, dict[str, float]]:
    """GB/s by pass and contender; "copy" is a device copy of as many bytes."""
    inputs = build(case, "cuda")
    result: dict[str, dict[str, float]] = {}
    for which, bytes_ in bytes_moved(case, inputs).items():
        source = torch.empty(bytes_ // 2, dtype=torch.uint8, device="cuda")
        destination = torch.empty_like(source)
        calls: dict[str, Call] = {"copy": partial(destination.copy_, source)}
        for name, loss_of in contenders(case).items():
            calls[name] = partial(forward if which == "forward" else step, loss_of, inputs)
        result[which] = {name: bytes_ / gpu_seconds(call) * 1e-9 for name, call in calls.items()}
    return result


def markdown(files: list[Path]) -> str:
    """One table of several runs; of what two of them measured the last one counts."""
    speeds_of: dict[str, dict[str, dict[str, float]]] = {}
    for path in files:
        for row in json.loads(path.read_text())["GB/s"]:
            figures = {name: value for name, value in row.items() if name not in ("case", "pass")}
            speeds_of.setdefault(row["case"], {}).setdefault(row["pass"], {}).update(figures)
    lines = [
        "| case | forward, GB/s | of a copy | torch | liger | with backward, GB/s | of a copy | torch | liger |",
        "|:--|" + "--:|" * 8,
    ]
    for case, passes in speeds_of.items():
        cells = [f"`{case}`"]
        for which in ("forward", "forward_backward"):
            row = passes[which]
            fused = row["fused"]
            ratios = [f"{fused / row[name]:.1f}x" if name in row else "-" for name in ("torch", "liger-kernel")]
            cells += [f"{fused:.0f}", f"{fused / row['copy']:.0%}", *ratios]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--filter", action="append", default=[], help="only cases with this in their name; repeatable")
    parser.add_argument("--json", type=Path, help="where the figures go besides the screen")
    parser.add_argument("--markdown", type=Path, nargs="+", metavar="JSON", help="only print earlier runs as a table")
    options = parser.parse_args(arguments)
    if options.markdown:
        sys.stdout.write(markdown(options.markdown))
        return
    if reason := why_unusable():
        parser.error(reason)
    console = Console(width=130, highlight=False)
    rows: list[dict[str, Any]] = []
    report = {"machine": describe("cuda"), "GB/s": rows}
    console.print(f"{torch.cuda.get_device_name()}: GB/s of the bytes that a loss must move, share of a copy's speed")
    for case in cases():
        if options.filter and not any(part in case.name for part in options.filter):
            continue
        line = f"{case.name:<62}"
        for which, row in speeds(case).items():
            rows.append({"case": case.name, "pass": which, **row})
            line += " | " + " ".join(f"{name} {speed:.0f}" for name, speed in row.items())
            line += f" {row['fused'] / row['copy']:4.0%}"
        console.print(line, soft_wrap=True)
        torch.cuda.empty_cache()
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
