"""The losses of models that are spread over processes, in two of them that speak through gloo: see two_ranks.py."""

import json
import os

import pytest
import torch
import torch.multiprocessing
from compilation import locked
from losses import LOSSES, sample
from two_ranks import CASES, NUM_RANKS, outcome_of, run_cases

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch has no gloo here"
)


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """What each rank wrote. Once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two_ranks"
    with locked(directory):
        if not directory.exists():
            directory.mkdir()
            criteria = [loss.our_module() for loss in LOSSES]
            torch.multiprocessing.spawn(run_cases, (criteria, directory), nprocs=NUM_RANKS)
    return [json.loads(outcome_of(rank, directory).read_text()) for rank in range(NUM_RANKS)]


@pytest.mark.parametrize("name", CASES)
def test_on_two_ranks(name, ranks):
    for outcome in ranks:
        assert outcome["errors"].get(name, "a case before it failed") == ""


def test_modules_sent_to_spawned_processes(ranks):
    torch.manual_seed(0)
    expected = [loss.our_module()(*sample(loss, (6, 5))).item() for loss in LOSSES]
    for outcome in ranks:
        assert outcome["values"] == expected
