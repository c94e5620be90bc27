"""`python -m benchmarks` as a user runs it, on cells that take microseconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.formats import megabytes, milliseconds, ratio
from benchmarks.request import Request
from benchmarks.results import fused_speedup, times_floor
from benchmarks.runner import WorkerError, run_in_subprocess, run_in_this_process, worker_environment

pytestmark = pytest.mark.slow  # programs that import torch, one after the other

ROOT = Path(__file__).parents[2]


def benchmarks(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """One run of the smallest case with both allocators: the folder written, and what was printed."""
    output = tmp_path_factory.mktemp("results")
    finished = benchmarks(
        "--quick", "--no-compile", "--filter", "cross_entropy-32x10", "--allocator", "both", "--threads", 1,
        "--output", output,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return output, finished.stdout


def test_the_json_tells_the_machine_the_command_and_every_result(quick_run):
    report = json.loads((quick_run[0] / "quick.json").read_text())
    assert report["failures"] == []
    assert report["quick"] is True
    assert "--no-compile" in report["command"]
    assert report["machine"]["torch"]
    assert report["machine"]["fused_losses_cpu_capability"]
    assert [(r["case"], r["allocator"], r["threads"]) for r in report["results"]] == [
        ("cross_entropy-32x10-float32", "default", 1),
        ("cross_entropy-32x10-float32", "thp", 1),
    ]
    for result in report["results"]:
        assert result["contenders"].keys() == {"eager", "fused"}
        assert result["contenders"]["eager"]["peak_extra_bytes"]["forward_backward"] > 32 * 10 * 4


def test_the_screen_shows_a_row_for_each_case(quick_run):
    assert "cross_entropy-32x10-float32" in quick_run[1]
    assert "fwd+bwd" in quick_run[1]


def test_plots_are_written_and_drawn_again_identically(quick_run, tmp_path):
    output = quick_run[0]
    names = {path.name for path in output.glob("*.svg")}
    assert names == {
        "quick-time_over_floor-default-1_threads.svg",
        "quick-time_over_floor-thp-1_threads.svg",
        "quick-peak_memory.svg",
    }
    finished = benchmarks("--plot-only", output / "quick.json", "--output", tmp_path)
    assert finished.returncode == 0, finished.stderr
    for name in names:
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes()


def test_markdown_has_a_row_for_each_result_and_pass(quick_run):
    finished = benchmarks("--markdown", quick_run[0] / "quick.json")
    assert finished.returncode == 0, finished.stderr
    rows = [line for line in finished.stdout.splitlines() if line.startswith("| cross_entropy | 32 x 10 | float32 |")]
    assert len(rows) == 4
    assert "these figures mean nothing" in finished.stdout
    columns = {line.count("|") for line in finished.stdout.splitlines() if line.startswith("|")}
    assert len(columns) == 1


def test_list_prints_the_names_that_a_filter_leaves():
    finished = benchmarks("--list", "--filter", "128256")
    assert finished.stdout.split() == ["cross_entropy-1024x128256-float32", "cross_entropy-1024x128256-bfloat16"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--filter", "no_such_case"], "no case matches"),
        (["--threads", "0"], "must be at least 1"),
        (["--device", "cuda", "--allocator", "thp"], "about CPU memory"),
        (["--one-process"], "a process for each case"),
    ],
)
def test_wrong_arguments_end_with_status_2_and_a_reason(arguments, message):
    finished = benchmarks(*arguments)
    assert finished.returncode == 2
    assert message in finished.stderr


@pytest.mark.parametrize("run", [run_in_subprocess, run_in_this_process])
def test_a_worker_that_fails_tells_why(run):
    request = Request(
        "no_such_case", "cpu", "default", None, with_compile=False, quick=True, min_seconds=0, min_rounds=2
    )
    with pytest.raises(WorkerError, match="no benchmark case is called 'no_such_case'"):
        run(request)


def test_the_allocator_setting_is_decided_by_the_request_alone(monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    assert "THP_MEM_ALLOC_ENABLE" not in worker_environment("default")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    assert worker_environment("thp")["THP_MEM_ALLOC_ENABLE"] == "1"


def result_with(**medians):
    """A result whose contenders took these times in forward; the floor took 2 s."""
    return {
        "floor": {"forward": {"median_s": 2.0}},
        "contenders": {name: {"times": {"forward": {"median_s": time}}} for name, time in medians.items()},
    }


def test_ratios_compare_fused_with_the_best_rival_and_the_floor():
    result = result_with(eager=40.0, compile=12.0, fused=4.0)
    assert fused_speedup(result, "forward", "eager") == 10.0
    assert fused_speedup(result, "forward", "eager", "compile") == 3.0
    assert times_floor(result, "fused", "forward") == 2.0


def test_a_ratio_with_someone_missing_is_absent():
    assert fused_speedup(result_with(eager=40.0, fused=4.0), "forward", "eager", "compile") is None
    assert times_floor(result_with(eager=40.0), "fused", "forward") is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (milliseconds(0.123456), "123"),
        (milliseconds(0.00123456), "1.23"),
        (milliseconds(None), "-"),
        (ratio(123.4), "123x"),
        (ratio(12.34), "12.3x"),
        (ratio(0.6), "0.60x"),
        (megabytes(524_288_000), "524"),
        (megabytes(1280), "< 0.01"),
    ],
)
def test_figures_have_about_three_digits(written, expected):
    assert written == expected
