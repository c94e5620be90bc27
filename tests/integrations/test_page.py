"""What docs/integrations.md shows is executed, where the framework that a block names is installed."""

import re
from pathlib import Path

import pytest

import fused_losses

PAGE = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def framework_of(block):
    named = re.match(r"# needs: (\w+)\n", block)
    return named and named[1]


@pytest.mark.parametrize("block", BLOCKS, ids=[framework_of(block) or "torch" for block in BLOCKS])
def test_the_block_runs_and_leaves_nothing_behind(block):
    if framework_of(block):
        pytest.importorskip(framework_of(block), reason=f"{framework_of(block)} is not installed")
    names = {}
    exec(compile(block, "integrations.md", "exec"), names)
    if "loss.backward()" in block:
        assert names["loss"].isfinite() and all(p.grad is not None for p in names["model"].parameters())
    if "convert(" in block:
        assert type(names["loss"]).__module__ == "fused_losses.integrations.timm"
    if "report" in block:
        assert isinstance(names["report"], fused_losses.explain_patch().__class__)
    assert not fused_losses.is_patched()


def test_every_integration_has_a_block():
    named = {framework_of(block) for block in BLOCKS} - {None}
    assert named == {integration.name for integration in fused_losses.integrations.status()}
