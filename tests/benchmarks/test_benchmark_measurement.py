"""The instruments: interleaving, the floor, the memory peak, the contenders, the guard against wrong numbers."""

import functools
import time
from collections import Counter

import pytest
import torch

from benchmarks import contenders as contenders_module
from benchmarks.agreement import DisagreementError, check_agreement
from benchmarks.cases import Case
from benchmarks.contenders import Contender, contenders
from benchmarks.cpu_device import CpuDevice
from benchmarks.floor import floor_tasks
from benchmarks.inputs import build
from benchmarks.measure import WARMUP_CALLS, Task, measure_interleaved
from benchmarks.memory import peak_extra_bytes

SMALL = Case("cross_entropy", (64, 100))
CPU = CpuDevice()


def sleeping_task(seconds, log, name):
    def call():
        log.append(name)
        time.sleep(seconds)

    return Task([call], each_call_once=True)


def test_tasks_take_turns_and_the_order_rotates():
    log = []
    tasks = {name: sleeping_task(1e-4, log, name) for name in "abc"}
    measure_interleaved(tasks, CPU, min_seconds_per_task=0.0, min_rounds=4)
    assert "".join(log[WARMUP_CALLS * len(tasks) :]) == "abcbcacababc"


def test_the_median_is_the_time_of_one_call():
    measured = measure_interleaved(
        {"slow": sleeping_task(5e-3, [], "slow")}, CPU, min_seconds_per_task=0.0, min_rounds=3
    )
    assert 5e-3 <= measured["slow"].median < 0.1
    assert len(measured["slow"].raw_times) == 3


def test_fast_calls_share_a_sample_and_preparation_is_not_timed():
    prepared = []

    def prepare_slowly():
        prepared.append(None)
        time.sleep(2e-3)

    counted = Counter()
    task = Task([lambda: counted.update("x")], before_sample=prepare_slowly)
    measured = measure_interleaved({"fast": task}, CPU, min_seconds_per_task=0.0, min_rounds=3)["fast"]
    assert measured.number_per_run > 10
    assert measured.median < 1e-4
    assert len(prepared) < counted["x"] / 10


def test_all_inputs_of_a_rotation_are_called():
    log = []
    task = Task([functools.partial(log.append, index) for index in range(3)])
    measure_interleaved({"rotating": task}, CPU, min_seconds_per_task=0.0, min_rounds=2)
    counts = Counter(log)
    assert counts.keys() == {0, 1, 2}
    assert counts[0] > WARMUP_CALLS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_floor_copies_and_reads_all_logits_whatever_the_layout(dtype):
    inputs = build(Case("cross_entropy", (2, 3, 4, 5), dtype, layout="channels_last"), "cpu")
    tasks = floor_tasks(SMALL, [inputs])
    assert torch.equal(tasks["forward_backward"].calls[0](), inputs.logits)
    words = inputs.logits.detach().permute(0, 2, 3, 1).reshape(-1).view(torch.int32)
    assert tasks["forward"].calls[0]() == words.max()


def test_the_peak_counts_what_lives_together_and_not_what_was_freed_before():
    def call():
        first = torch.empty(1000, dtype=torch.uint8)
        del first
        second, third = torch.empty(3000, dtype=torch.uint8), torch.empty(4000, dtype=torch.uint8)
        del second, third
        return torch.empty(500, dtype=torch.uint8)

    assert peak_extra_bytes(Task([call]), CPU) == 7000


def test_the_peak_does_not_count_the_gradient_of_an_earlier_call():
    inputs = build(SMALL, "cpu")
    eager = contenders("cross_entropy", [inputs], with_compile=False, with_inplace=False)[0]
    task = eager.tasks["forward_backward"]
    task.calls[0]()
    first = peak_extra_bytes(task, CPU)
    assert first == peak_extra_bytes(task, CPU) > inputs.logits_bytes


def test_every_step_makes_a_fresh_gradient():
    inputs = build(SMALL, "cpu")
    for contender in contenders("cross_entropy", [inputs], with_compile=False, with_inplace=False):
        call = contender.tasks["forward_backward"].calls[0]
        (_, first), (_, second) = call(), call()
        assert first is not second
        assert torch.equal(first, second)  # replaced, not accumulated


def test_a_loss_that_fused_losses_lacks_is_left_out(monkeypatch):
    monkeypatch.delattr(contenders_module.fused_losses.functional, "nll_loss")
    inputs = build(Case("nll_loss", (64, 100)), "cpu")
    present = contenders("nll_loss", [inputs], with_compile=False, with_inplace=False)
    assert [contender.name for contender in present] == ["eager"]


def test_the_compiled_contender_is_one_graph_with_options_and_several_inputs(monkeypatch):
    # The code generator takes ten seconds or more; what can go wrong here is the capture before it.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    case = Case("cross_entropy", (64, 100), class_weight=True, label_smoothing=0.1)
    rotation = [build(case, "cpu", seed) for seed in range(2)]
    present = contenders("cross_entropy", rotation, with_compile=True, with_inplace=False)
    assert [contender.name for contender in present][:2] == ["eager", "compile"]
    check_agreement(present)


def overwriting_cross_entropy(logits, target, *, inplace_gradient=False):
    """Stands for the in-place option: destroys the logits, so that a second call with them gives another loss."""

    class Overwrite(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits):
            loss = torch.nn.functional.cross_entropy(logits, target)
            rows = torch.arange(len(target))
            logits.copy_(torch.softmax(logits, 1))
            logits[rows, target] -= 1
            ctx.save_for_backward(logits.div_(len(target)))
            return loss

        @staticmethod
        def backward(ctx, grad_output):
            return ctx.saved_tensors[0]

    if not inplace_gradient:
        return torch.nn.functional.cross_entropy(logits, target)
    return Overwrite.apply(logits)


def test_the_inplace_contender_gets_new_logits_before_each_sample(monkeypatch):
    monkeypatch.setattr(contenders_module.fused_losses.functional, "cross_entropy", overwriting_cross_entropy)
    inputs = build(SMALL, "cpu")
    present = contenders("cross_entropy", [inputs], with_compile=False, with_inplace=True)
    assert [contender.name for contender in present] == ["eager", "fused", "fused in-place"]
    check_agreement(present)
    check_agreement(present)  # again: the first call destroyed a copy, not the logits
    assert present[-1].tasks.keys() == {"forward_backward"}


@pytest.mark.parametrize(("loss_factor", "gradient_factor"), [(1.1, 1.0), (1.0, 1.1), (float("nan"), 1.0)])
def test_wrong_numbers_are_not_timed(loss_factor, gradient_factor):
    inputs = build(SMALL, "cpu")
    eager = contenders("cross_entropy", [inputs], with_compile=False, with_inplace=False)[0]

    def wrong():
        loss, gradient = eager.tasks["forward_backward"].calls[0]()
        return loss * loss_factor, gradient * gradient_factor

    with pytest.raises(DisagreementError, match="wrong differs from eager"):
        check_agreement([eager, Contender("wrong", {"forward_backward": Task([wrong])})])
