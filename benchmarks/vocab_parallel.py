"""What cross-entropy costs when two processes have half of the vocabulary each: loss and gradient, a thread each.

python -m benchmarks.vocab_parallel [--rows 1024 --classes 32000 ...]

"one process" is the fused cross-entropy of all classes on one of the two, while the other waits. "loss_parallel" is
torch's own, of DTensors on the same mesh. All take turns, round by round, so that a slow minute hits each of them; a
round of a contender begins when both processes are there and ends when the slower one is done. Beside the time on the
clock stands the processor time of the process that used more, which says what a machine with idle cores would take.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import loss_parallel
from torch.multiprocessing.spawn import spawn

from fused_losses import functional
from fused_losses.distributed import vocab_parallel_cross_entropy

NUM_RANKS = 2
WARMUP_ROUNDS = 2
SPREAD, ONE, TORCHS = "spread over 2", "one process", "loss_parallel"

Step = Callable[[], None]


def contenders(rank: int, num_rows: int, num_classes: int, dtype: torch.dtype) -> dict[str, Step]:
    mesh = init_device_mesh("cpu", (NUM_RANKS,))
    torch.manual_seed(0)
    logits = torch.randn(num_rows, num_classes).to(dtype)
    target = torch.randint(num_classes, (num_rows,))
    local = logits.tensor_split(NUM_RANKS, 1)[rank].clone().requires_grad_()
    whole = logits.requires_grad_()
    spread = DTensor.from_local(local.detach(), mesh, [Shard(1)]).requires_grad_()
    everywhere = DTensor.from_local(target, mesh, [Replicate()])

    def step(loss: Tensor, leaf: Tensor) -> None:
        torch.autograd.grad(loss, leaf)

    def torchs() -> None:
        with loss_parallel():
            loss = torch.nn.functional.cross_entropy(spread, everywhere)
            step(loss, spread)

    return {
        SPREAD: lambda: step(vocab_parallel_cross_entropy(local, target), local),
        ONE: lambda: step(functional.cross_entropy(whole, target), whole) if rank == 0 else None,
        TORCHS: torchs,
    }


def seconds_of_a_step(step: Step) -> list[float]:
    """On the clock and of the processor, of the process that took more."""
    dist.barrier()
    begin, begin_of_processor = time.perf_counter(), time.process_time()
    step()
    seconds = torch.tensor([time.perf_counter() - begin, time.process_time() - begin_of_processor], dtype=torch.float64)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    taken: list[float] = seconds.tolist()
    return taken


def cell(median: float, base: float) -> str:
    return f"{median * 1e3:.3g} ({median / base:.2f})"


def measure(rank: int, options: argparse.Namespace, directory: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory / 'store'}", rank=rank, world_size=NUM_RANKS)
    table = Table("dtype", "time", SPREAD, ONE, TORCHS, title=f"{options.rows} x {options.classes}: ms (over {SPREAD})")
    for dtype in (torch.float32, torch.bfloat16):
        steps = contenders(rank, options.rows, options.classes, dtype)
        names = list(steps)
        seconds: dict[str, list[list[float]]] = {name: [] for name in names}
        for round_index in range(WARMUP_ROUNDS + options.rounds):
            first = round_index % len(names)  # no contender always inherits the caches of the same other one
            for name in names[first:] + names[:first]:
                taken = seconds_of_a_step(steps[name])
                if round_index >= WARMUP_ROUNDS:
                    seconds[name].append(taken)
        for index, time_of in enumerate(("clock", "processor")):
            medians = [statistics.median(sample[index] for sample in seconds[name]) for name in (SPREAD, ONE, TORCHS)]
            table.add_row(str(dtype)[6:], time_of, *(cell(median, medians[0]) for median in medians))
    if rank == 0:
        Console(width=120).print(table)
    dist.destroy_process_group()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        spawn(measure, (options, Path(directory)), nprocs=NUM_RANKS)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
