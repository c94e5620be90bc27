"""Cases that several processes compute together, which speak through gloo: how they are started, run and heard of."""

from __future__ import annotations

import datetime
import json
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from compilation import locked

SECONDS_FOR_A_COLLECTIVE = 180  # it needs milliseconds, a compiler on a busy machine a minute before it
needs_gloo = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo here"
)


def run_cases(
    rank: int,
    num_ranks: int,
    directory: Path,
    cases: Mapping[str, Callable[..., None]],
    arguments: Callable[[int], tuple[Any, ...]] = lambda rank: (rank,),
) -> None:
    """On one rank, which ends with it. Writes what each case raised, or nothing.

    Args:
        directory: where the ranks find each other, and their outcomes stay.
        cases: by name, in the same order on every rank.
        arguments: those of every case on a rank, made in its process group.
    """
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=SECONDS_FOR_A_COLLECTIVE)
    store = f"file://{directory / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=num_ranks, timeout=timeout)
    of_rank = arguments(rank)
    errors = {}
    for name, function in cases.items():
        torch.manual_seed(0)
        try:
            function(*of_rank)
            errors[name] = ""
        except Exception:
            errors[name] = traceback.format_exc()
            break  # the other ranks are somewhere else now
    (directory / f"rank_{rank}.json").write_text(json.dumps(errors))
    dist.destroy_process_group()
    # Without the interpreter's end, in which gloo's threads aborted 2 of 80 processes after all was written.
    os._exit(0)


def outcomes(
    tmp_path_factory: pytest.TempPathFactory, name: str, num_ranks: int, run: Callable[..., None], *arguments: Any
) -> list[dict[str, str]]:
    """What each rank wrote of each case. The processes are started once, for all workers of pytest-xdist.

    Args:
        name: of the cases, which no others have.
        run: ``run(rank, num_ranks, directory, *arguments)`` calls :func:`run_cases`.
    """
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"{name}_{num_ranks}"
    with locked(directory):
        if not directory.exists():
            directory.mkdir()
            torch.multiprocessing.spawn(run, (num_ranks, directory, *arguments), nprocs=num_ranks)
    return [json.loads((directory / f"rank_{rank}.json").read_text()) for rank in range(num_ranks)]


def assert_passed(name: str, of_ranks: list[dict[str, str]]) -> None:
    for errors in of_ranks:
        assert errors.get(name, "a case before it failed") == ""
