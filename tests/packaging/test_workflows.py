"""The forge's workflows call this repository's commands: that these exist, and that they cover what CI runs here.

That the files are workflows at all is checked by `make lint`, against the forge's schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def jobs(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())["jobs"]


def commands(path: Path) -> Iterator[str]:
    for job in jobs(path).values():
        yield from (step["run"] for step in job["steps"] if "run" in step)


def make_targets(text: str) -> set[str]:
    return set(re.findall(r"^make (\S+)", text, flags=re.MULTILINE))


@each_workflow
def test_every_target_that_a_workflow_makes_exists(path: Path) -> None:
    (targets,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert make_targets("\n".join(commands(path))) <= set(targets.split())


def test_the_forge_runs_what_ci_runs_here() -> None:
    on_the_forge = set().union(*(make_targets("\n".join(commands(path))) for path in WORKFLOWS))
    assert make_targets((ROOT / ".ci" / "run").read_text()) <= on_the_forge


@each_workflow
def test_a_workflow_ends_by_itself_and_may_change_nothing(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}
    for name, job in jobs(path).items():
        assert job["timeout-minutes"] <= 180, name


def test_the_matrix_has_the_oldest_torch_and_python_and_the_newest_python() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    matrix = jobs(ROOT / ".github" / "workflows" / "tests.yml")["test"]["strategy"]["matrix"]
    oldest_torch = re.findall(r'dependencies = \["torch>=(\S+)"\]', project)
    pythons = re.findall(r"Python :: (3\.\d+)", project)
    assert matrix["torch"][0] == f"{oldest_torch[0]}.0"
    assert (matrix["python"][0], matrix["python"][-1]) == (pythons[0], pythons[-1])
