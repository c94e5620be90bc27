"""A vocabulary that is spread over two, three and four processes, which speak through gloo: vocab_parallel_cases.py."""

import json
import os

import pytest
import torch
import torch.multiprocessing
from compilation import locked
from vocab_parallel_cases import CASES, outcome_of, run_cases

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch has no gloo here"
)


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory):
    """What each rank of so many wrote. The processes are started once, for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def of(num_ranks):
        directory = base / f"vocab_parallel_{num_ranks}"
        with locked(directory):
            if not directory.exists():
                directory.mkdir()
                torch.multiprocessing.spawn(run_cases, (num_ranks, directory), nprocs=num_ranks)
        return [json.loads(outcome_of(rank, directory).read_text()) for rank in range(num_ranks)]

    return of


@pytest.mark.parametrize("num_ranks", [2, 3, 4])  # one neighbour, a rank in the middle, a mesh of 2 x 2
@pytest.mark.parametrize("name", CASES)
def test_a_spread_vocabulary(name, num_ranks, outcomes):
    for errors in outcomes(num_ranks):
        assert errors.get(name, "a case before it failed") == ""
