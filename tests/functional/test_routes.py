"""Every row of the routing table is true: the profiler sees a fused_losses operator run, or sees none."""

import re
from pathlib import Path

import pytest
import torch
from losses import LOSSES, sample
from routes import FUSED, ROUTES, TORCH
from torch.profiler import ProfilerActivity, profile

ROUTING_TABLE = Path(__file__).parents[2] / "docs" / "routing.md"


TORCHS_LOSSES = {
    "aten::cross_entropy_loss",
    "aten::nll_loss_nd",
    "aten::binary_cross_entropy",
    "aten::binary_cross_entropy_with_logits",
}


def operators_run_by(call):
    with profile(activities=[ProfilerActivity.CPU]) as record:
        call()
    return {event.name for event in record.events()}


def fused_operators_run_by(call):
    return {name for name in operators_run_by(call) if name.startswith("fused_losses::")}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.call)
def test_route(route):
    route.run()  # what happens only the first time, such as compiling, is not looked at
    operators = operators_run_by(route.run)
    # An operator may still refuse the call when it sees the tensors: then torch's loss runs after it.
    if route.route == FUSED:
        assert any(name.startswith("fused_losses::") for name in operators), "no fused_losses operator ran"
        assert not operators & TORCHS_LOSSES
    else:
        assert operators & TORCHS_LOSSES, "torch's loss did not run"


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_backward_of_unreduced_losses_is_fused(loss):
    input, target = sample(loss, (6, 5))
    losses = loss.ours(input.requires_grad_(), target, reduction="none")
    operators = fused_operators_run_by(lambda: losses.backward(torch.ones_like(losses)))
    assert any("backward" in name for name in operators)


def test_the_profiler_sees_torchs_operators_too():
    """Without this the rows of torch's route could not fail."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        torch.nn.functional.cross_entropy(torch.randn(4, 5), torch.zeros(4, dtype=torch.int64))
    assert "aten::cross_entropy_loss" in [event.name for event in record.events()]


def test_descriptions_are_unique():
    calls = [route.call for route in ROUTES]
    assert len(set(calls)) == len(calls)


def rows_of_markdown_table(text):
    """(first column, second column) of each row of the table whose head begins "| call | route |"."""
    lines = iter(text.splitlines())
    for line in lines:
        if re.match(r"\|\s*call\s*\|\s*route\s*\|", line):
            break
    next(lines)  # the line of dashes
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        call, route = (cell.strip() for cell in line.strip("|").split("|")[:2])
        rows.append((call.replace("`", ""), route.replace("`", "")))
    return rows


def test_the_documented_table_is_this_one():
    documented = rows_of_markdown_table(ROUTING_TABLE.read_text())
    assert documented == [(route.call, route.route) for route in ROUTES]


def test_the_markdown_parser_reads_a_table():
    text = (
        "# Title\n\n| call | route | why |\n|---|---|---|\n| `a` and b | fused | x |\n| c | torch | y |\n\n| d | e |\n"
    )
    assert rows_of_markdown_table(text) == [("a and b", FUSED), ("c", TORCH)]
