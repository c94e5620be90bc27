"""A vocabulary that is spread over two, three and four processes, which speak through gloo: vocab_parallel_cases.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


# A quick run has two processes: `make test` is to take minutes, on two cores.
SLOW_CASES = [pytest.param(*case, marks=pytest.mark.slow) if case[1] > 2 else case for case in CASES]


@pytest.mark.parametrize(("name", "num_ranks"), SLOW_CASES)
def test_a_spread_vocabulary(name, num_ranks, outcomes):
    for errors in outcomes(num_ranks):
        assert errors.get(name, "a case before it failed") == ""


@pytest.mark.slow
def test_the_example_trains_the_same_curve_as_one_process():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "examples.vocab_parallel", "--steps", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "furthest apart" in run.stdout
