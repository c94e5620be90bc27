"""Which peers the benchmark compares with, and with which arguments it calls them."""

import sys

import pytest
import torch
from gpu_stand_in import SMALL
from published_peers import PUBLISHED, withdraw

from benchmarks import plots
from benchmarks.agreement import check_agreement
from benchmarks.cases import Case
from benchmarks.contenders import contenders
from benchmarks.inputs import build
from benchmarks.peers import PEERS, peer_contenders
from benchmarks.results import CONTENDER_NAMES, PASSES, PEER_NAMES


def peers_of(case, count=2):
    rotation = [build(case, "cpu", seed) for seed in range(count)]
    eager = contenders(case.loss, rotation, with_compile=False, with_inplace=False)[0]
    present, absent = peer_contenders(case, rotation, eager)
    return [eager, *present], absent


def names(entries):
    return [entry.name for entry in entries]


def test_peers_have_the_names_and_the_order_of_the_tables():
    assert tuple(peer.name for peer in PEERS) == PEER_NAMES
    assert plots.COLOURS.keys() == set(CONTENDER_NAMES)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, PEER_NAMES),
        ({"dtype": "bfloat16"}, PEER_NAMES),
        ({"class_weight": True}, ("liger-kernel", "quack-kernels")),
        ({"label_smoothing": 0.3}, ("liger-kernel", "flash-attn", "apex")),
        ({"class_weight": True, "label_smoothing": 0.3}, ("liger-kernel",)),
        ({"probability_target": True}, ()),
    ],
)
def test_peers_that_know_the_options_are_called_with_them(published, options, expected):
    # Five classes: a fifth of the rows has class 0, the default padding_idx of one of them.
    entries, absent = peers_of(Case("cross_entropy", (200, 5), **options))
    assert tuple(names(entries[1:])) == expected
    assert absent.keys() == set(PEER_NAMES) - set(expected)
    assert all(reason.startswith("not comparable: it has ") for reason in absent.values())
    for entry in entries[1:]:
        check_agreement([entries[0], entry])  # again, with the logits as the first calls left them
        for which in PASSES:
            entry.tasks[which].before_sample()
            for call in entry.tasks[which].calls:
                call()


def test_no_peer_changes_the_logits_that_the_others_get(published):
    rotation = [build(SMALL, "cpu", seed) for seed in range(2)]
    before = [inputs.logits.detach().clone() for inputs in rotation]
    eager = contenders("cross_entropy", rotation, with_compile=False, with_inplace=False)[0]
    present, _ = peer_contenders(SMALL, rotation, eager)
    assert tuple(names(present)) == PEER_NAMES
    for entry in present:
        for task in entry.tasks.values():
            task.before_sample()
            for call in task.calls:
                call()
    assert all(map(torch.equal, (inputs.logits for inputs in rotation), before))


@pytest.mark.parametrize("case", [Case("nll_loss", (20, 5)), Case("cross_entropy", (2, 5, 4, 4))])
def test_peers_are_not_compared_on_other_losses_and_shapes(published, case):
    entries, absent = peers_of(case)
    assert names(entries) == ["eager"]
    assert absent.keys() == set(PEER_NAMES)


def test_a_peer_that_is_not_installed_is_unavailable_with_the_reason(monkeypatch):
    withdraw(monkeypatch)
    entries, absent = peers_of(SMALL)
    assert names(entries) == ["eager"]
    assert absent.keys() == set(PEER_NAMES)
    for module, reason in zip(PUBLISHED, absent.values(), strict=True):
        assert reason.startswith("unavailable: ")
        assert module.partition(".")[0] in reason


def test_apex_built_without_its_extension_is_unavailable(published, monkeypatch):
    monkeypatch.delattr(sys.modules["apex.contrib.xentropy"], "SoftmaxCrossEntropyLoss")
    _, absent = peers_of(SMALL)
    assert absent == {"apex": absent["apex"]}
    assert absent["apex"].startswith("unavailable: cannot import name 'SoftmaxCrossEntropyLoss'")


def test_a_peer_that_raises_or_gives_wrong_numbers_is_absent_and_stops_nobody(published, monkeypatch):
    def old_liger(input, target, weight=None, label_smoothing=0.0):  # the weight is accepted and ignored
        return torch.nn.functional.cross_entropy(input, target)

    def old_quack(x, target, lse_partial=None, ignore_index=-100, reduction="mean", inplace_backward=False):
        raise AssertionError("not reached: the weight is refused")

    monkeypatch.setattr(sys.modules["liger_kernel.transformers.functional"], "liger_cross_entropy", old_liger)
    monkeypatch.setattr(sys.modules["quack.cross_entropy"], "cross_entropy", old_quack)
    entries, absent = peers_of(Case("cross_entropy", (200, 5), class_weight=True))
    assert names(entries) == ["eager"]
    assert absent["liger-kernel"].startswith("failed: DisagreementError: liger-kernel differs from eager by ")
    assert absent["quack-kernels"].startswith("failed: TypeError: ")
