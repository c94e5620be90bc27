"""What cross-entropy of a linear layer costs, forward and backward, beside its three matrix products alone.

python -m benchmarks.linear_cross_entropy [--dtype float32 ...] [--shape 2048x256x32000 ...] [--rounds 3] [--peers]
    [--device cuda]

A shape is rows x features x classes; with `/70` behind it 70 % of the targets are ignored, of which only the fused loss
and the products take advantage. Medians of interleaved calls; MB: the most that a call holds beyond its inputs and its
gradients, without the pool of gradient memory. "products" are over at most a gigabyte of logits at a time and, of
16-bit tensors on a CPU that has no instructions for them, in float32: torch, which multiplies them as they are, is left
out of their cells there (`--emulated` asks for it). `--peers` adds other packages' losses, those that are
installed: linear_peers.py. Whatever is measured must first give the loss and the gradients that torch, or else ours,
gives.
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
from benchmarks.device import Device
from benchmarks.devices import add_device_argument, device_called
from benchmarks.linear_peers import GPU_PEERS, PEERS, LinearLoss
from benchmarks.optional_peers import load_peers
from fused_losses.autograd.linear_products import has_instructions_for

SHAPES = (
    "2048x256x32000",
    "1024x1024x32000",
    "4096x64x32000",
    "512x2048x128256",
    "16384x128x100000",
    "2048x256x32000/70",
)
GPU_SHAPES = ("8192x2048x32000", "8192x4096x128256", "16384x2048x151936", "4096x8192x128256", "8192x4096x128256/70")
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


def most_unfused_bytes(device: torch.device) -> int:
    return MOST_UNFUSED_BYTES if device.type == "cpu" else torch.cuda.mem_get_info()[0] // 2


Contender = Callable[[Problem], Any]  # the loss and its gradients, but of the products


def problem(shape: str, dtype: torch.dtype, device: str) -> Problem:
    sizes, _, ignored = shape.partition("/")
    rows, features, classes = map(int, sizes.split("x"))
    target = torch.randint(classes, (rows,), device=device)
    if ignored:
        target[torch.rand(rows, device=device) < int(ignored) / 100] = -100
    input = torch.randn(rows, features, device=device).to(dtype)
    weight = (torch.randn(classes, features, device=device) * features**-0.5).to(dtype)
    return Problem(input.requires_grad_(), weight.requires_grad_(), target)


def products(problem: Problem) -> None:
    """Of the rows that count."""
    x, weight = (leaf.detach() for leaf in problem.leaves)
    if not is_multiplied(problem):
        x, weight = x.float(), weight.float()
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


def those_that_run(peers: dict[str, LinearLoss], problem: Problem, console: Console) -> dict[str, LinearLoss]:
    """Another package's kernels may know neither this torch nor this problem."""
    running = {}
    for name, function in peers.items():
        try:
            peer(function)(problem)
        except Exception as error:
            console.print(f"without {name}: {type(error).__name__}: {error}".partition("\n")[0], highlight=False)
        else:
            running[name] = function
    return running


def is_multiplied(problem: Problem) -> bool:
    """Whether the processor has matrix instructions for the type; without them torch's products take minutes."""
    dtype = problem.input.dtype
    return dtype.itemsize > 2 or problem.input.device.type != "cpu" or has_instructions_for(dtype)


def contenders(problem: Problem, emulated: bool, peers: dict[str, LinearLoss]) -> dict[str, Contender]:
    found: dict[str, Contender] = {"fused": fused, "products": products}
    if emulated or is_multiplied(problem):
        if problem.unfused_bytes() <= most_unfused_bytes(problem.input.device):
            found["torch, unfused"] = unfused
            found["ours on F.linear"] = fused_loss_alone
        found |= {name: peer(function) for name, function in peers.items()}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # from torch 2.13 on
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


def measured(
    problem: Problem, functions: dict[str, Contender], rounds: int, device: Device
) -> dict[str, tuple[float, float]]:
    """Seconds, and megabytes beyond the gradients."""
    check_agreement(problem, functions)
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
    return 0 if name == "products" else sum(leaf.nbytes for leaf in problem.leaves)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--shape", action="append", help="rows x features x classes[/percent ignored]; repeatable")
    parser.add_argument("--dtype", action="append", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=[*COLUMNS[1:], *PEERS, *GPU_PEERS],
        help="a column; repeatable",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--emulated", action="store_true", help="torch's 16-bit products too: minutes")
    parser.add_argument("--peers", action="store_true", help="other packages' losses too")
    add_device_argument(parser)
    options = parser.parse_args(arguments)
    device = device_called(options.device, parser)
    on_gpu = options.device == "cuda"
    peers, absent = load_peers(GPU_PEERS if on_gpu else PEERS) if options.peers else ({}, {})
    columns = (*COLUMNS, *peers)
    on = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads"
    title = f"forward and backward, {on}: ms (a multiple of fused), MB"
    table = Table("shape", "dtype", *columns, title=title)
    console = Console(width=170)
    for name, reason in absent.items():
        console.print(f"without {name}: {reason}", highlight=False)
    for dtype in options.dtype or ["float32", "bfloat16"]:
        for shape in options.shape or (GPU_SHAPES if on_gpu else SHAPES):
            of_shape = problem(shape, getattr(torch, dtype), device.tensors)
            wanted = {name: f for name, f in peers.items() if name not in options.without}
            functions = contenders(of_shape, options.emulated, those_that_run(wanted, of_shape, console))
            functions = {name: f for name, f in functions.items() if name not in options.without}
            results = measured(of_shape, functions, options.rounds, device)
            base = results["fused"][0]
            cells = [
                f"{results[name][0] * 1e3:.4g} ({results[name][0] / base:.2f}), {results[name][1]:.0f}"
                if name in results
                else "-"
                for name in columns
            ]
            table.add_row(shape, dtype, *cells)
            console.print(f"{shape} {dtype}: " + "; ".join(cells), style="dim")
    console.print(table)


if __name__ == "__main__":
    main()
