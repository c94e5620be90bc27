"""Cases that two, three or four processes compute together.

Each case runs on every rank, draws the same numbers there, and raises. test_vocab_parallel.py starts the processes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from ranks import run_cases

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


def run(rank: int, num_ranks: int, directory: Path, modules: list[str]) -> None:
    """On one of so many ranks, the cases of the modules for that number."""
    for module in modules:
        importlib.import_module(module)
    cases = {name: function for (name, needed_ranks), function in CASES.items() if needed_ranks == num_ranks}
    run_cases(rank, num_ranks, directory, cases)
