"""The grid of the benchmark, and every one of its cases measured once in its small version."""

import math

import pytest

from benchmarks.cases import GRID, QUICK_GRID, QUICK_NUMEL, Case, find, select
from benchmarks.request import Request
from benchmarks.results import PASSES
from benchmarks.worker import run_case


def test_names_are_unique_and_find_their_case():
    assert [find(case.name) for case in GRID] == list(GRID)


def test_an_unknown_name_is_refused():
    with pytest.raises(KeyError, match="--list"):
        find("cross_entropy-1x1-float32")


def test_quick_cases_are_cases_of_the_grid():
    assert set(QUICK_GRID) <= set(GRID)


def test_select_takes_any_of_the_filters_and_any_of_the_dtypes():
    names = [case.name for case in select(["65536x10", "nll_loss-8"], ["float32"])]
    assert names == [
        "cross_entropy-65536x10-float32",
        "nll_loss-8192x1000-float32",
        "nll_loss-8x21x256x256-float32",
        "nll_loss-8192x1000-log_softmax-float32",
    ]


def test_a_filter_reaches_the_whole_grid_also_with_quick():
    assert select(["binary_cross_entropy-"], quick=True) == select(["binary_cross_entropy-"])


@pytest.mark.parametrize(
    ("shape", "small_shape"),
    [
        ((4096, 32000), (16, 32000)),
        ((8, 21, 256, 256), (1, 21, 256, 256)),  # one row is above the limit already
        ((20_000_000,), (QUICK_NUMEL,)),
        ((32, 10), (32, 10)),  # below the limit
    ],
)
def test_a_shrunk_case_keeps_its_classes_and_loses_rows(shape, small_shape):
    assert Case("cross_entropy", shape).shrunk().shape == small_shape


@pytest.mark.slow
@pytest.mark.parametrize("case", GRID, ids=lambda case: case.name)
def test_every_case_of_the_grid_runs(case, restore_num_threads):
    request = Request(
        case.name, "cpu", "default", threads=1, with_compile=False, quick=True, min_seconds=0.0, min_rounds=2
    )
    result = run_case(request)
    assert result["case"] == case.shrunk().name
    assert result["threads"] == 1
    assert result["logits_bytes"] == math.prod(case.shrunk().shape) * (4 if case.dtype == "float32" else 2)
    assert {"eager", "fused"} <= result["contenders"].keys()
    for which in PASSES:
        summaries = [result["floor"][which]]
        summaries += [result["contenders"][name]["times"][which] for name in ("eager", "fused")]
        for summary in summaries:
            assert 0 < summary["minimum_s"] <= summary["q25_s"] <= summary["median_s"] <= summary["q75_s"]
            assert summary["samples"] >= 2
    for name in ("eager", "fused"):
        # At least the gradient.
        assert result["contenders"][name]["peak_extra_bytes"]["forward_backward"] >= result["logits_bytes"]
