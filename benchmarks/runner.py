"""Sends requests to worker processes one after the other and shows how far it is."""

import gc
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.request import Allocator, Request
from benchmarks.results import CaseResult, Failure

ROOT = Path(__file__).parent.parent
STDERR_LINES_KEPT = 15


class WorkerError(Exception):
    """A worker process ended without a result; the message is the end of its standard error."""


def run_in_subprocess(request: Request) -> CaseResult:
    command = [sys.executable, "-m", "benchmarks.worker", json.dumps(asdict(request))]
    worker = subprocess.run(
        command, cwd=ROOT, env=worker_environment(request.allocator), capture_output=True, text=True
    )
    if worker.returncode != 0:
        last_lines = "\n".join(worker.stderr.splitlines()[-STDERR_LINES_KEPT:])
        raise WorkerError(f"exit status {worker.returncode}\n{last_lines}")
    result: CaseResult = json.loads(worker.stdout)
    return result


def run_in_this_process(request: Request) -> CaseResult:
    """Without the seconds that a process takes to load torch; what one case leaves behind the next one finds."""
    import torch

    from benchmarks.worker import run_case

    try:
        return run_case(request)
    except Exception as error:
        raise WorkerError("".join(traceback.format_exception(error)[-STDERR_LINES_KEPT:])) from error
    finally:
        torch.compiler.reset()  # code compiled for a case is compiled anew a few times and then never again
        gc.collect()
        torch.cuda.empty_cache()


def worker_environment(allocator: Allocator) -> dict[str, str]:
    """Ours, with torch's switch for huge pages set or absent. torch reads it once, at its first allocation."""
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    # What is timed is compiled by this torch, of these operators.
    environment["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    return environment | {"THP_MEM_ALLOC_ENABLE": "1"} if allocator == "thp" else environment


def run_all(
    requests: Sequence[Request],
    console: Console,
    on_result: Callable[[CaseResult], None],
    on_failure: Callable[[Failure], None],
    run: Callable[[Request], CaseResult] = run_in_subprocess,
) -> None:
    """Calls back after every request; one that fails does not stop the others."""
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with progress:
        bar = progress.add_task("", total=len(requests))
        for number, request in enumerate(requests, start=1):
            threads = f", threads: {request.threads}" if request.threads else ""
            title = f"{request.case} ({request.allocator} allocator{threads})"
            progress.update(bar, description=title)
            if not console.is_terminal:  # where a bar cannot move, such as a log file
                console.print(f"{number}/{len(requests)} {title}", highlight=False)
            try:
                on_result(run(request))
            except WorkerError as failure:
                on_failure(
                    {
                        "case": request.case,
                        "allocator": request.allocator,
                        "threads": request.threads,
                        "error": str(failure),
                    }
                )
            progress.advance(bar)
