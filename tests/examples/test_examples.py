"""The examples run, their numbers agree, and they notice when they do not. One quick run of all of them serves most."""

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fused_losses

for package in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(package, reason="the examples need the extra `demo`")

pytestmark = pytest.mark.slow  # `make demo` runs them too

ROOT = Path(__file__).parents[2]
NAMES = ["digits", "breast_cancer", "wine", "autoencoder", "colours", "language_model", "language_model_head"]


def run_examples(module, output, *arguments):
    command = [sys.executable, "-m", module, "--quick", "--output", str(output), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def all_examples(output):
    return run_examples("examples", output)


@pytest.fixture
def numbers(all_examples, output, name):
    assert all_examples.returncode == 0, all_examples.stdout + all_examples.stderr
    return json.loads((output / f"{name}.json").read_text(encoding="utf-8"))


def test_every_program_in_the_folder_is_run():
    programs = {path.stem for path in ROOT.glob("examples/*.py") if "\ndef program(" in path.read_text("utf-8")}
    assert programs == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_both_losses_give_the_same_curve(numbers):
    torch_curve, fused_curve = np.array(numbers["torch_curve"]), np.array(numbers["fused_curve"])
    difference = np.abs(fused_curve - torch_curve) / np.abs(torch_curve)
    assert numbers["passed"]
    assert difference.max() == numbers["difference"] <= numbers["bound"]
    # A few quick steps in float32 stray by some units in the last place, 1.2e-7 each: a bound beyond that is no bound.
    assert numbers["bound"] < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_training_learns(numbers):
    assert numbers["fused_curve"][-1] < numbers["fused_curve"][0]
    assert numbers["fused_score"] == pytest.approx(numbers["torch_score"], rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_fused_loss_asks_for_no_more_memory(numbers):
    assert 0 < numbers["fused_loss_bytes"] <= numbers["torch_loss_bytes"]
    assert 0 < numbers["fused_step_bytes"] <= numbers["torch_step_bytes"]
    for name in ("torch", "fused"):
        assert 0 < numbers[f"{name}_loss_seconds"] <= numbers[f"{name}_step_seconds"]
        assert numbers[f"{name}_loss_bytes"] <= numbers[f"{name}_step_bytes"]


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_drawn(numbers, output, name):
    png = (output / f"{name}.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    assert width > 1000
    assert height > 500


def test_the_summary_names_every_program_and_its_picture(all_examples, output):
    summary = all_examples.stdout.rpartition("All programs")[2]
    for name in NAMES:
        assert f" {name} " in summary
        assert str(output / f"{name}.png") in summary


def test_a_program_runs_alone(tmp_path):
    alone = run_examples("examples.wine", tmp_path)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert "The curves agree." in alone.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wine.json", "wine.png"]


@pytest.fixture
def wine(monkeypatch):
    """The smallest program, to be spoilt."""
    monkeypatch.syspath_prepend(ROOT)
    from examples import wine

    return wine.program(quick=True)


def exit_status(program, output):
    from examples.command_line import main

    with pytest.raises(SystemExit) as left:
        main(lambda quick: program, arguments=["--quick", "--output", str(output)])
    return int(left.value.code)


class SlightlyWrong(nn.Module):
    """The gradient is a thousandth too large, the loss itself is right."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, output, target):
        return self.loss(output + 1e-3 * (output - output.detach()), target)


def test_the_program_itself_passes(wine, tmp_path):
    assert exit_status(wine, tmp_path) == 0


def test_a_slightly_wrong_gradient_fails(wine, tmp_path, capsys):
    assert exit_status(replace(wine, fused_loss=SlightlyWrong(wine.fused_loss)), tmp_path) == 1
    assert "THE CURVES DISAGREE" in capsys.readouterr().out


def test_comparing_torch_with_itself_fails(wine, tmp_path, capsys):
    assert exit_status(replace(wine, fused_loss=wine.torch_loss), tmp_path) == 1
    assert "NOT COMPARED" in capsys.readouterr().out


def test_memory_of_a_loss_is_the_peak_of_what_it_allocates(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from examples.loss_cost import loss_memory

    logits, target = torch.randn(256, 1000), torch.randint(1000, (256,))
    memory = loss_memory(nn.CrossEntropyLoss(), logits, target)
    # torch holds the log-probabilities, their gradient and the logits' gradient at once, and some scalars.
    logits_bytes = 4 * logits.numel()
    assert 3 * logits_bytes <= memory.peak_bytes < 3 * logits_bytes + 1000
    assert not memory.ran_fused


def test_memory_counts_a_gradient_that_the_pool_could_serve(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from examples.loss_cost import loss_memory

    logits, target = torch.randn(2048, 1000), torch.randint(1000, (2048,))
    for _ in range(2):  # a gradient is idle the second time, were the pool not off
        memory = loss_memory(fused_losses.CrossEntropyLoss(), logits, target)
        assert 4 * logits.numel() <= memory.peak_bytes < 4 * logits.numel() + 1000
        assert memory.ran_fused
