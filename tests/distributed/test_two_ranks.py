"""The losses of models that are spread over processes, in two of them that speak through gloo: see two_ranks.py."""

import pytest
import torch
from losses import LOSSES, sample
from ranks import assert_passed, needs_gloo, outcomes
from two_ranks import CASES, NUM_RANKS, SENT_MODULES, run

pytestmark = needs_gloo


@pytest.fixture(scope="session")
def of_ranks(tmp_path_factory):
    torch.manual_seed(0)
    criteria = [loss.our_module() for loss in LOSSES]
    values = [criterion(*sample(loss, (6, 5))).item() for loss, criterion in zip(LOSSES, criteria, strict=True)]
    return outcomes(tmp_path_factory, "two_ranks", NUM_RANKS, run, criteria, values)


@pytest.mark.parametrize("name", [*CASES, SENT_MODULES])
def test_on_two_ranks(name, of_ranks):
    assert_passed(name, of_ranks)
