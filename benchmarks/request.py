"""What the command line asks a worker process to measure."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.cases import Case

# "thp" asks torch's CPU allocator for huge pages (THP_MEM_ALLOC_ENABLE=1), which spares it most page faults of fresh
# tensors: eager and compiled code gain most from it.
Allocator = Literal["default", "thp"]


@dataclass(frozen=True)
class Request:
    """One case under one setting."""

    case: str
    device: str
    allocator: Allocator
    threads: int | None  # None: as many as torch takes by itself
    with_compile: bool
    quick: bool
    min_seconds: float  # of measuring, for each contender and pass, on average
    min_rounds: int
    with_peers: bool = False


def requests(
    cases: Iterable[Case],
    *,
    device: str,
    allocators: Sequence[Allocator],
    threads: Sequence[int | None],
    with_compile: bool,
    with_peers: bool,
    quick: bool,
    min_seconds: float,
) -> list[Request]:
    """Every case under every setting, the settings of a case next to each other."""
    return [
        Request(
            case.name,
            device,
            allocator,
            num_threads,
            with_compile,
            quick,
            min_seconds,
            min_rounds=3 if quick else 9,
            with_peers=with_peers,
        )
        for case, num_threads, allocator in itertools.product(cases, threads, allocators)
    ]
