"""What stands in several files, as each of their readers wants it there: the version, the oldest torch and Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fused_losses
import fused_losses._C as native

ROOT = Path(__file__).parents[2]


def find(pattern: str, file: str) -> str:
    """The group of the pattern's first match."""
    match = re.search(pattern, (ROOT / file).read_text(), flags=re.MULTILINE)
    assert match is not None, f"{file} has no {pattern}"
    return match[1]


def test_the_version_is_the_same_everywhere() -> None:
    assert find(r"^version: (\S+)$", "CITATION.cff") == fused_losses.__version__
    assert find(r"^## \[(\S+)\]", "CHANGELOG.md") == fused_losses.__version__


def test_the_oldest_torch_is_the_one_that_the_extension_is_built_for() -> None:
    oldest = native.build_info()["torch_target"]
    assert find(r'^dependencies = \["torch>=(\S+)"\]$', "pyproject.toml") == oldest
    assert find(r'^requires = \[.*"torch>=([\d.]+)"', "pyproject.toml") == oldest
    target = int(find(r"^TORCH_TARGET = (0x\w+)$", "setup.py"), 16)
    assert f"{target >> 56}.{target >> 48 & 0xFF}" == oldest


def test_every_supported_python_is_named_and_the_tools_are_set_to_the_oldest() -> None:
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    oldest = find(r'^requires-python = ">=(\S+)"$', "pyproject.toml")
    assert named == [f"3.{minor}" for minor in range(int(oldest.split(".")[1]), 10 + len(named))]
    assert find(r'^python_version = "(\S+)"$', "pyproject.toml") == oldest
    assert find(r'^target-version = "py(\d+)"$', "pyproject.toml") == oldest.replace(".", "")


def distributions(requirements: str) -> set[str]:
    return {
        re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r"^([\w.-]+)", requirements, flags=re.MULTILINE)
    }


@pytest.mark.parametrize("extra", ["test", "bench", "demo", "wheel", "lint"])
def test_the_locked_versions_have_what_an_extra_asks_for(extra: str) -> None:
    locked = (ROOT / "requirements" / "development.txt").read_text()
    listed = re.findall(r'"([^"]+)"', find(rf"^{extra} = \[([^]]+)\]$", "pyproject.toml"))
    assert listed
    assert distributions("\n".join(listed)) <= distributions(locked)
    assert {requirement for requirement in listed if re.fullmatch(r"[\w-]+==\S+", requirement)} <= set(
        locked.splitlines()
    )


def test_the_locked_versions_name_no_index_and_leave_torch_to_the_environment() -> None:
    locked = (ROOT / "requirements" / "development.txt").read_text()
    assert "://" not in locked
    assert "torch" not in distributions(locked)
