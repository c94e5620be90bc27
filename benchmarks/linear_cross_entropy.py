"""What cross-entropy of a linear layer costs, forward and backward, beside its three matrix products alone.

python -m benchmarks.linear_cross_entropy [--dtype float32 ...] [--shape 2048x256x32000 ...] [--rounds 3] [--peers]

A shape is rows x features x classes; with `/70` behind it 70 % of the targets are ignored, of which only the fused loss
and the products take advantage. Medians of interleaved calls; MB: the most that a call holds beyond its inputs and its
gradients, without the pool of gradient memory. "products" are over at most a gigabyte of logits at a time and, of
16-bit tensors, in float32: most processors emulate 16-bit products, which is also why torch is left out of the
16-bit cells by default (`--emulated` asks for it). `--peers` adds other packages' losses, those that are installed:
linear_peers.py. Whatever is measured must first give the loss and the gradients that torch, or else ours, gives.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fused_losses
from benchmarks.cpu_device import CpuDevice
from benchmarks.linear_peers import PEERS, LinearLoss
from benchmarks.optional_peers import load_peers

SHAPES = (
    "2048x256x32000",
    "1024x1024x32000",
    "4096x64x32000",
    "512x2048x128256",
    "16384x128x100000",
    "2048x256x32000/70",
)
COLUMNS = ("fused", "products", "torch, unfused", "torch, options", "ours on F.linear")
LARGEST_DIFFERENCE = {torch.float64: 1e-10, torch.float32: 1e-3}  # relative to the largest; of others 0.05
MOST_LOGITS = 1 << 28  # of the products at a time
MOST_UNFUSED_BYTES = 12 << 30  # of the logits, their log-probabilities and their gradient: torch is left out above


class Problem(NamedTuple):
    input: Tensor
    weight: Tensor
    target: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.input, self.weight

    def unfused_bytes(self) -> int:
        return 3 * self.input.shape[0] * self.weight.shape[0] * self.input.itemsize


Contender = Callable[[Problem], Any]  # the loss and its gradients, but of the products


def problem(shape: str, dtype: torch.dtype) -> Problem:
    sizes, _, ignored = shape.partition("/")
    rows, features, classes = map(int, sizes.split("x"))
    target = torch.randint(classes, (rows,))
    if ignored:
        target[torch.rand(rows) < int(ignored) / 100] = -100
    input, weight = torch.randn(rows, features).to(dtype), (torch.randn(classes, features) * features**-0.5).to(dtype)
    return Problem(input.requires_grad_(), weight.requires_grad_(), target)


def products(problem: Problem) -> None:
    """Of the rows that count."""
    x, weight = (leaf.detach().float() for leaf in problem.leaves)
    x = x[problem.target != -100]
    to_weight = torch.zeros_like(weight)
    for rows in torch.split(x, max(1, MOST_LOGITS // len(weight))):
        logits = torch.mm(rows, weight.t())
        torch.mm(logits, weight)
        to_weight.addmm_(logits.t(), rows)


def with_gradients(loss: Tensor, problem: Problem) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss, problem.leaves)


def fused(problem: Problem) -> object:
    return with_gradients(fused_losses.functional.linear_cross_entropy(*problem), problem)


def unfused(problem: Problem) -> object:
    return with_gradients(F.cross_entropy(F.linear(*problem.leaves), problem.target), problem)


def fused_loss_alone(problem: Problem) -> object:
    return with_gradients(fused_losses.functional.cross_entropy(F.linear(*problem.leaves), problem.target), problem)


def torchs_chunks(problem: Problem) -> object:
    loss = F.linear_cross_entropy(*problem, options=torch.nn.LinearCrossEntropyOptions())
    return with_gradients(loss, problem)


def peer(function: LinearLoss) -> Contender:
    return lambda problem: with_gradients(function(*problem), problem)


def contenders(problem: Problem, emulated: bool, peers: dict[str, LinearLoss]) -> dict[str, Contender]:
    found: dict[str, Contender] = {"fused": fused, "products": products}
    is_16_bit = problem.input.dtype.itemsize == 2
    if emulated or not is_16_bit:
        if problem.unfused_bytes() <= MOST_UNFUSED_BYTES:
            found["torch, unfused"] = unfused
            found["ours on F.linear"] = fused_loss_alone
        found["torch, options"] = torchs_chunks
        found |= {name: peer(function) for name, function in peers.items()}
    elif hasattr(torch.nn, "LinearCrossEntropyOptions"):
        found["torch, options"] = torchs_chunks
    return found


def check_agreement(problem: Problem, functions: dict[str, Contender]) -> None:
    """A coarse net for a benchmark that calls something else than it says."""
    names = [name for name in functions if name != "products"]
    reference = "torch, unfused" if "torch, unfused" in names else "fused"
    expected = functions[reference](problem)
    allowed = LARGEST_DIFFERENCE.get(problem.input.dtype, 0.05)
    for name in names:
        for what, one, other in zip(("loss", "input", "weight"), functions[name](problem), expected, strict=True):
            difference = float((one.float() - other.float()).abs().max() / other.float().abs().max())
            if not difference <= allowed:  # also when it is NaN
                raise RuntimeError(f"{name} differs from {reference} in the {what} by {difference:.3g}, relative")


def measured(problem: Problem, functions: dict[str, Contender], rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds, and megabytes beyond the gradients."""
    check_agreement(problem, functions)
    device = CpuDevice()
    with fused_losses.limited_gradient_pool(0):
        megabytes = {
            name: ((device.peak_bytes(partial(f, problem)) or 0) - _gradient_bytes(name, problem)) / 1e6
            for name, f in functions.items()
        }
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(device.seconds([partial(function, problem)]))
    return {name: (sorted(of_one)[rounds // 2], megabytes[name]) for name, of_one in seconds.items()}


def _gradient_bytes(name: str, problem: Problem) -> int:
    """As they are summed: those of 16 bits in float32."""
    return 0 if name == "products" else sum(leaf.numel() * max(4, leaf.itemsize) for leaf in problem.leaves)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--shape", action="append", help="rows x features x classes[/percent ignored]; repeatable")
    parser.add_argument("--dtype", action="append", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument(
        "--without", action="append", default=[], choices=[*COLUMNS[1:], *PEERS], help="a column; repeatable"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--emulated", action="store_true", help="torch's 16-bit products too: minutes")
    parser.add_argument("--peers", action="store_true", help="other packages' losses too")
    options = parser.parse_args(arguments)
    peers, absent = load_peers(PEERS) if options.peers else ({}, {})
    columns = (*COLUMNS, *peers)
    title = f"forward and backward, {torch.get_num_threads()} threads: s (a multiple of fused), MB"
    table = Table("shape", "dtype", *columns, title=title)
    console = Console(width=170)
    for name, reason in absent.items():
        console.print(f"without {name}: {reason}", highlight=False)
    for dtype in options.dtype or ["float32", "bfloat16"]:
        for shape in options.shape or SHAPES:
            of_shape = problem(shape, getattr(torch, dtype))
            functions = contenders(of_shape, options.emulated, peers)
            functions = {name: f for name, f in functions.items() if name not in options.without}
            results = measured(of_shape, functions, options.rounds)
            base = results["fused"][0]
            cells = [
                f"{results[name][0]:.3f} ({results[name][0] / base:.2f}), {results[name][1]:.0f}"
                if name in results
                else "-"
                for name in columns
            ]
            table.add_row(shape, dtype, *cells)
            console.print(f"{shape} {dtype}: " + "; ".join(cells), style="dim")
    console.print(table)


if __name__ == "__main__":
    main()
