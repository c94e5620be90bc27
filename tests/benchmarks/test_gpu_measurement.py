"""How the benchmark times, rotates inputs and counts bytes on a GPU, on the stand-in."""

from collections import Counter

import pytest
import torch
from gpu_stand_in import CACHE_BYTES, SMALL

from benchmarks.cases import Case
from benchmarks.contenders import overwriting_contender
from benchmarks.floor import bytes_moved, copy_floor_tasks
from benchmarks.inputs import MAX_INPUTS, build, build_rotation
from benchmarks.measure import Task, measure_interleaved
from benchmarks.memory import peak_extra_bytes
from benchmarks.results import PASSES


def test_a_sample_is_what_passes_between_two_events_and_begins_with_a_full_cache(gpu):
    calls = [gpu.cuda.call("a", 2.0), gpu.cuda.call("b", 3.0)]
    assert gpu.device.seconds(calls) == pytest.approx(5e-3)
    assert gpu.cuda.log == ["synchronize", "fill cache", "record", "a", "b", "record", "wait"]


def test_what_fills_the_cache_is_several_times_as_large(gpu):
    assert gpu.device._other_data.nbytes == gpu.device.cold_bytes == 3 * CACHE_BYTES


def test_samples_interleave_and_their_preparation_is_not_timed(gpu):
    tasks = {
        "fast": Task([gpu.cuda.call("f", 2.0)], before_sample=gpu.cuda.call("prepare", 1000.0)),
        "slow": Task([gpu.cuda.call("s", 7.0)]),
    }
    measured = measure_interleaved(tasks, gpu.device, min_seconds_per_task=0.0, min_rounds=4)
    assert (measured["fast"].median, measured["slow"].median) == pytest.approx((2e-3, 7e-3))
    timed = [name for name in gpu.cuda.log if name in "fs"]
    assert "".join(timed[-8:]) == "fssffssf"


def test_a_task_that_spends_its_inputs_makes_each_call_at_most_once_a_sample(gpu):
    prepared = []
    calls = [gpu.cuda.call(name, 0.01) for name in "abc"]
    task = Task(calls, before_sample=lambda: prepared.append(len(gpu.cuda.log)), each_call_once=True)
    measured = measure_interleaved({"spending": task}, gpu.device, min_seconds_per_task=0.0, min_rounds=2)
    assert measured["spending"].number_per_run == 3
    samples = [gpu.cuda.log[begin:end] for begin, end in zip(prepared, [*prepared[1:], None], strict=True)]
    assert all(max(Counter(name for name in sample if name in "abc").values()) == 1 for sample in samples)


def test_short_calls_share_a_sample_and_go_round_the_inputs(gpu):
    task = Task([gpu.cuda.call(name, 0.2) for name in "abc"])
    measured = measure_interleaved({"short": task}, gpu.device, min_seconds_per_task=0.0, min_rounds=2)
    assert measured["short"].number_per_run == 8
    assert "".join(name for name in gpu.cuda.log if name in "abc").endswith("abcabcab" * 2)


@pytest.mark.parametrize(
    ("shape", "inputs"),
    [
        ((64, 100), 1),  # 25600 bytes: above three caches of 4096 alone
        ((10, 100), 4),  # 4000 bytes
        ((2, 2), MAX_INPUTS),  # 16 bytes: 768 would be needed
    ],
)
def test_inputs_rotate_until_they_are_larger_than_the_cache(gpu, shape, inputs):
    rotation = build_rotation(Case("cross_entropy", shape), gpu.device)
    assert len(rotation) == inputs
    assert len({entry.logits.data_ptr() for entry in rotation}) == inputs
    if inputs > 1:
        assert not torch.equal(rotation[0].logits, rotation[1].logits)


def test_the_peak_is_beyond_what_was_there_and_not_of_an_earlier_time(gpu):
    gpu.cuda.allocate(9000)
    gpu.cuda.allocate(-8000)

    def call():
        gpu.cuda.allocate(500)
        gpu.cuda.allocate(300)
        gpu.cuda.allocate(-800)

    assert peak_extra_bytes(Task([call]), gpu.device) == 800


@pytest.mark.parametrize(
    ("case", "forward", "gradient"),
    [
        (Case("cross_entropy", (8, 10), "bfloat16"), 8 * 10 * 2 + 8 * 8, 160),
        (Case("cross_entropy", (2, 3, 4, 5)), 2 * 3 * 4 * 5 * 4 + 2 * 4 * 5 * 8, 480),
        (Case("cross_entropy", (8, 10), probability_target=True), 2 * 320, 320),
        (Case("nll_loss", (8, 10)), 8 * 4 + 8 * 8, 320),  # one logit a row
        (Case("binary_cross_entropy_with_logits", (100,), "bfloat16"), 2 * 200, 200),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else None,
)
def test_bytes_moved_are_logits_and_target_read_and_the_gradient_written(case, forward, gradient):
    assert bytes_moved(case, build(case, "cpu")) == {"forward": forward, "forward_backward": forward + gradient}


def test_the_floor_copies_half_the_bytes_for_each_input(monkeypatch):
    rotation = [build(SMALL, "cpu", seed) for seed in range(2)]
    copied = []

    def copy(destination, source):
        assert destination.data_ptr() != source.data_ptr()
        copied.append((destination.data_ptr(), destination.nbytes))

    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    tasks = copy_floor_tasks(SMALL, rotation)
    for which in PASSES:
        copied.clear()
        for call in tasks[which].calls:
            call()
        assert [count for _, count in copied] == 2 * [bytes_moved(SMALL, rotation[0])[which] // 2]
        assert len({address for address, _ in copied}) == 2


def test_one_that_overwrites_gets_new_logits_for_every_input_and_pass():
    rotation = [build(SMALL, "cpu", seed) for seed in range(2)]
    before = [inputs.logits.detach().clone() for inputs in rotation]
    seen = []

    def destroying(logits, target):
        seen.append(logits.detach().clone())
        loss = torch.nn.functional.cross_entropy(logits.clone(), target)
        logits.data.zero_()
        return loss

    contender = overwriting_contender("destroying", destroying, rotation)
    assert contender.tasks.keys() == set(PASSES)
    for task in contender.tasks.values():
        assert task.each_call_once
        for _ in range(2):
            seen.clear()
            task.before_sample()
            for call in task.calls:
                call()
            assert all(map(torch.equal, seen, before))
    assert all(map(torch.equal, (inputs.logits for inputs in rotation), before))
