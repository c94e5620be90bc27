"""Causal models without logits that are spread over processes, in two of them that speak through gloo: see
sharded_model_cases.py."""

import pytest
from ranks import assert_passed, needs_gloo, outcomes

pytest.importorskip("transformers", reason="transformers is not installed")

from sharded_model_cases import CASES, NUM_RANKS, run

pytestmark = needs_gloo


@pytest.mark.parametrize("name", CASES)
def test_on_two_ranks(name, tmp_path_factory):
    assert_passed(name, outcomes(tmp_path_factory, "sharded_models", NUM_RANKS, run))
