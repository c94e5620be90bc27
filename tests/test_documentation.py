"""What README and docstrings show is executed."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as torch_functional

import fused_losses
from fused_losses import explaining, functional, modules, route_log

ROOT = Path(__file__).parents[1]


def test_readme_example_runs_and_leaves_torch_unpatched() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    logits, target = names["logits"], names["target"]
    assert isinstance(logits, torch.Tensor) and logits.grad is not None
    torch.testing.assert_close(names["loss"], torch_functional.cross_entropy(logits, target))
    assert isinstance(names["model"], torch.nn.ModuleDict)
    assert type(names["model"]["loss"]) is fused_losses.CrossEntropyLoss
    assert not fused_losses.is_patched()


@pytest.mark.parametrize("module", [functional, modules, explaining, route_log], ids=lambda module: module.__name__)
def test_docstring_examples_print_what_they_show(module) -> None:
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted >= 3
    assert result.failed == 0


def test_each_feature_of_the_readme_is_held_by_tests() -> None:
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (.+?) \| .+? \| .+? \| `(tests/\S+\.py)` \|$", text, flags=re.MULTILINE)
    assert len(rows) >= 15
    for feature, path in rows:
        assert "def test_" in (ROOT / path).read_text(), feature


@pytest.mark.parametrize("target", ["demo", "test", "bench", "lint", "clean"])
def test_makefile_has_the_documented_targets(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
