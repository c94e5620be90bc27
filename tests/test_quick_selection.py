"""What `make test` keeps of a grid, and that files are made once for all processes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from compilation import compile_source, emulation_unavailable
from quick_selection import covering

GRID = [
    dict(zip(("loss", "dtype", "shape", "device"), numbers, strict=True))
    for numbers in itertools.product(range(4), range(4), range(9), range(2))
]
NAMES = [json.dumps(case) for case in GRID]


def pairs(cases: list[dict[str, int]]) -> set[tuple[tuple[str, int], ...]]:
    return {pair for case in cases for pair in itertools.combinations(sorted(case.items()), 2)}


def test_every_pair_of_values_is_kept_by_few_cases() -> None:
    kept = covering(GRID, NAMES)
    assert pairs([GRID[i] for i in kept]) == pairs(GRID)
    assert 4 * 9 <= len(kept) <= 2 * 4 * 9  # of 288: no fewer than the two largest parameters have pairs


def test_the_choice_depends_on_the_grid_alone() -> None:
    """Not on what the values are, such as their addresses: each process of pytest-xdist must choose the same."""
    elsewhere = [{name: 1000 + 7 * number for name, number in case.items()} for case in GRID]
    assert covering(GRID, NAMES) == covering(elsewhere, NAMES)


def test_a_single_parameter_keeps_all_its_values() -> None:
    assert covering([{"x": i} for i in range(50)], [str(i) for i in range(50)]) == set(range(50))


@pytest.mark.slow
def test_the_rest_is_what_a_quick_run_leaves_out_and_what_it_draws_fewer_examples_of() -> None:
    def collected(*options: str) -> set[str]:
        folder = Path(__file__).parent / "functional"
        command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:xdist", *options]
        files = [folder / "test_class_counts.py", folder / "test_drawn_problems.py"]
        output = subprocess.run([*command, *files], capture_output=True, text=True, check=True, cwd=folder.parents[1])
        return {line for line in output.stdout.splitlines() if "::" in line}

    whole, quick, rest = collected(), collected("--quick"), collected("--rest")
    assert quick < whole and quick | rest == whole
    assert quick & rest and all("test_drawn_problems.py" in test for test in quick & rest)


@pytest.mark.skipif(emulation_unavailable() is not None, reason="nothing is compiled here")
def test_an_object_is_made_once_and_again_when_its_source_is_another(tmp_path: Path) -> None:
    source, target = tmp_path / "one.cpp", tmp_path / "build" / "one.o"
    source.write_text("int one() { return 1; }\n")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: compile_source(source, target, []), range(4)))
    made = target.stat().st_mtime_ns
    source.touch()  # as in a new checkout
    compile_source(source, target, [])
    assert target.stat().st_mtime_ns == made
    source.write_text("int one() { return 2; }\n")
    compile_source(source, target, [])
    assert target.stat().st_mtime_ns != made
