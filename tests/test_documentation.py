"""What README, the pages and docstrings show is executed."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional

import fused_losses
from fused_losses import (
    explaining,
    explaining_patch,
    focal,
    functional,
    linear_losses,
    linear_modules,
    modules,
    route_log,
)
from fused_losses.distributed import linear, losses
from fused_losses.distributed import modules as distributed_modules

ROOT = Path(__file__).parents[1]


# Those of docs/integrations.md need frameworks: tests/integrations/test_page.py.
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").glob("*.md")} - {ROOT / "docs" / "integrations.md"})


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def run(page: Path) -> dict[str, Any]:
    """The names that the blocks of a page leave, each of which goes on where the one before has ended."""
    names: dict[str, Any] = {}
    for block in blocks_of(page):
        exec(compile(block, page.name, "exec"), names)
    return names


# torch.compile takes its time.
SHOWN = [
    pytest.param(page, id=page.name, marks=[pytest.mark.slow] if "@torch.compile" in page.read_text() else [])
    for page in PAGES
    if blocks_of(page)
]


@pytest.mark.parametrize("page", SHOWN)
def test_what_a_page_shows_runs_and_leaves_nothing_changed(page: Path, restore_num_threads: None) -> None:
    limit, threads = fused_losses.gradient_pool_limit(), torch.get_num_threads()
    run(page)
    assert not fused_losses.is_patched()
    assert (fused_losses.gradient_pool_limit(), torch.get_num_threads()) == (limit, threads)


def test_the_readme_shows_torchs_loss() -> None:
    names = run(ROOT / "README.md")
    assert names["logits"].grad is not None
    torch.testing.assert_close(names["loss"], torch_functional.cross_entropy(names["logits"], names["target"]))


def test_the_page_about_tokens_shows_what_torchs_operators_compute() -> None:
    names = run(ROOT / "docs" / "tokens.md")
    ours, torchs = (leaf.requires_grad_() for leaf in torch.randn(1, 3, 7, 50).expand(2, 3, 7, 50).clone())
    labels = torch.randint(50, (3, 7))
    labels[0, 4:] = -100
    x = 30 * torch.tanh(torchs[:, :-1] / 30)
    cross_entropy = torch_functional.cross_entropy(x.transpose(1, 2), labels[:, 1:], reduction="sum")
    counts = labels[:, 1:] != -100
    z = 1e-4 * (x.logsumexp(-1).square() * counts).sum()
    losses = [names["z_loss"](ours, labels), (cross_entropy + z) / counts.sum()]

    tokens, old, advantage = torch.randint(50, (3, 7)), torch.randn(3, 7) - 4, torch.randn(3, 1)
    log_p = (torchs / 0.9).log_softmax(-1)
    ratio = (log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - old).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    entropy = torch.distributions.Categorical(logits=log_p).entropy()
    losses += [names["grpo_loss"](ours, tokens, old, advantage), -(gain + 0.01 * entropy).mean()]

    losses += [names["same_z_loss"](ours, labels), losses[1]]
    mask = (torch.arange(7) < 5).expand(3, 7)
    log_prob = torchs.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    losses += [names["policy_gradient"](ours, tokens, advantage, mask), -(log_prob * advantage * mask).mean()]

    sum(losses[::2]).backward()
    sum(losses[1::2]).backward()
    torch.testing.assert_close(losses[::2], losses[1::2])
    torch.testing.assert_close(ours.grad, torchs.grad)


def test_the_page_about_linear_layers_shows_what_torchs_operators_compute() -> None:
    names = run(ROOT / "docs" / "linear_cross_entropy.md")
    hidden, head = torch.randn(3, 7, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    labels = torch.randint(50, (3, 7))
    labels[0, 4:] = -100
    counts = labels[:, 1:] != -100
    x = 30 * torch.tanh(hidden[:, :-1] @ head.t() / 30)
    total = torch_functional.cross_entropy(x.transpose(1, 2), labels[:, 1:], reduction="sum")
    total = total + 1e-4 * (x.logsumexp(-1).square() * counts).sum()
    for items in (None, 40):
        ours = names["language_model_loss"](hidden, head, labels, items, softcap=30.0)
        expected = total / (counts.sum() if items is None else items)
        torch.testing.assert_close(ours, expected)
        gradients = (torch.autograd.grad(loss, (hidden, head), retain_graph=True) for loss in (ours, expected))
        torch.testing.assert_close(*gradients)

    model = names["NextItem"](50, 8)
    states, next_items, event_weight = torch.randn(9, 8), torch.randint(50, (9,)), torch.rand(9).round(decimals=1)
    ours = model.loss(states, next_items, event_weight)
    scores = torch_functional.linear(states, model.items.weight, model.popularity) * 2
    losses = torch_functional.cross_entropy(scores, next_items, reduction="none")
    expected = (losses * event_weight).mean()
    torch.testing.assert_close(ours, expected)
    parameters = list(model.parameters())
    torch.testing.assert_close(torch.autograd.grad(ours, parameters), torch.autograd.grad(expected, parameters))


def test_the_page_about_spread_vocabularies_trains_as_one_process() -> None:
    names = run(ROOT / "docs" / "distributed.md")
    hidden, head, target = torch.randn(3, 7, 8), torch.randn(50, 8), torch.randint(50, (3, 7))
    ours, torchs = (head.clone().requires_grad_() for _ in range(2))
    optimizer = torch.optim.SGD([ours], lr=1.0)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        loss = names["step"](hidden, ours, target, optimizer)
    finally:
        torch.distributed.destroy_process_group()
    logits = (hidden @ torchs.t()).flatten(0, 1)
    expected = torch_functional.cross_entropy(logits, target.flatten(), label_smoothing=0.1)
    expected = expected + 1e-4 * logits.logsumexp(-1).square().mean()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(ours.detach(), (torchs - torchs.grad).detach())


LOCAL = [functional, modules, explaining, explaining_patch, focal, route_log, linear_losses, linear_modules]
DOCUMENTED = [*LOCAL, linear, losses, distributed_modules]


@pytest.mark.parametrize("module", DOCUMENTED, ids=lambda module: module.__name__)
def test_docstring_examples_print_what_they_show(module) -> None:
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted >= 3
    assert result.failed == 0


def test_each_feature_of_the_table_is_held_by_tests() -> None:
    text = (ROOT / "docs" / "features.md").read_text()
    rows = re.findall(r"^\| (.+?) \| .+? \| .+? \| `(tests/\S+\.py)` \|$", text, flags=re.MULTILINE)
    assert len(rows) >= 15
    for feature, path in rows:
        assert "def test_" in (ROOT / path).read_text(), feature


@pytest.mark.parametrize("target", ["demo", "demo-distributed", "test", "bench", "lint", "clean"])
def test_makefile_has_the_documented_targets(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
