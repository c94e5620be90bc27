"""Causal models without logits that are spread over processes, in two of them that speak through gloo: see
sharded_model_cases.py."""

import json
import os

import pytest
import torch
import torch.multiprocessing
from compilation import locked

pytest.importorskip("transformers", reason="transformers is not installed")

from sharded_model_cases import CASES, NUM_RANKS, outcome_of, run_cases

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch has no gloo here"
)


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """What each rank wrote. Once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sharded_models"
    with locked(directory):
        if not directory.exists():
            directory.mkdir()
            torch.multiprocessing.spawn(run_cases, (directory,), nprocs=NUM_RANKS)
    return [json.loads(outcome_of(rank, directory).read_text()) for rank in range(NUM_RANKS)]


@pytest.mark.parametrize("name", CASES)
def test_on_two_ranks(name, ranks):
    for outcome in ranks:
        assert outcome.get(name, "a case before it failed") == ""
