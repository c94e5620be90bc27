"""Cases that two, three or four processes compute together.

Each case runs on every rank, draws the same numbers there, and raises. test_vocab_parallel.py starts the processes.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

SECONDS_FOR_A_COLLECTIVE = 20  # it needs milliseconds; a rank that failed keeps the others waiting
NUMS_OF_RANKS = [2, 3, 4]  # one neighbour, a rank in the middle, a mesh of 2 x 2
CASES: dict[tuple[str, int], Callable[[int], None]] = {}  # by name and number of ranks


def case(function: Callable[[int], None]) -> Callable[[int], None]:
    return case_of(*NUMS_OF_RANKS)(function)


def case_of(*nums_of_ranks: int) -> Callable[[Callable[[int], None]], Callable[[int], None]]:
    """A case that takes a while, where some numbers of ranks have all there is to it."""

    def add(function: Callable[[int], None]) -> Callable[[int], None]:
        for num_ranks in nums_of_ranks:
            CASES[function.__name__, num_ranks] = function
        return function

    return add


def outcome_of(rank: int, directory: Path) -> Path:
    return directory / f"rank_{rank}.json"


def run_cases(rank: int, modules: list[str], num_ranks: int, directory: Path) -> None:
    """On one rank, those of the modules. Writes what each case raised, or nothing."""
    for module in modules:
        importlib.import_module(module)
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=SECONDS_FOR_A_COLLECTIVE)
    store = f"file://{directory / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=num_ranks, timeout=timeout)
    errors = {}
    for (name, needed_ranks), function in CASES.items():
        if needed_ranks != num_ranks:
            continue
        torch.manual_seed(0)
        try:
            function(rank)
            errors[name] = ""
        except Exception:
            errors[name] = traceback.format_exc()
            break  # the other ranks are somewhere else now
    outcome_of(rank, directory).write_text(json.dumps(errors))
    dist.destroy_process_group()
    # Without the interpreter's end, in which gloo's threads aborted 2 of 80 processes after all was written.
    os._exit(0)
