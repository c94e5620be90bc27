"""The benchmark's GPU path on a stand-in for `torch.cuda`: calls are counted, time passes when the test says so.

Tensors are on the CPU. What a GPU would answer, and whether its numbers are right, only the last test can show, which
is skipped where there is none.
"""

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest
import torch

import fused_losses
from benchmarks import __main__ as command
from benchmarks import cuda_device, plots, worker
from benchmarks.agreement import check_agreement
from benchmarks.cases import GPU_GRID, GRID, QUICK_GRID, Case, find, select
from benchmarks.contenders import contenders, overwriting_contender
from benchmarks.cuda_device import CudaDevice, split_by_free_memory, why_unusable
from benchmarks.floor import bytes_moved, copy_floor_tasks
from benchmarks.gpu_machine import describe_gpu
from benchmarks.inputs import MAX_INPUTS, build, build_rotation
from benchmarks.markdown import write_markdown
from benchmarks.measure import Task, measure_interleaved
from benchmarks.memory import peak_extra_bytes
from benchmarks.peers import PEERS, peer_contenders
from benchmarks.report import make_console, print_report
from benchmarks.request import Request, requests
from benchmarks.results import CONTENDER_NAMES, PASSES, PEER_NAMES, absences, gigabytes_per_second

CACHE_BYTES = 4096
SMALL = Case("cross_entropy", (64, 100))


@dataclass
class StandIn:
    """Stands for `torch.cuda`: a clock in ms, allocated bytes and their peak, and what happened, in order."""

    clock_ms: float = 0.0
    allocated: int = 0
    peak: int = 0
    log: list[str] = field(default_factory=list)

    def synchronize(self):
        self.log.append("synchronize")

    def allocate(self, count):
        self.allocated += count
        self.peak = max(self.peak, self.allocated)

    def forget_peak(self):
        self.peak = self.allocated

    def call(self, name, milliseconds):
        """A call that takes that long and writes itself into the log."""

        def made():
            self.log.append(name)
            self.clock_ms += milliseconds

        return made


@pytest.fixture
def gpu(monkeypatch):
    """A device whose tensors are on the CPU, above a stand-in for `torch.cuda`: `gpu.device` and `gpu.cuda`."""
    stand_in = StandIn()

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.ms, self.is_over = None, False

        def record(self):
            stand_in.log.append("record")
            self.ms = stand_in.clock_ms

        def synchronize(self):
            stand_in.log.append("wait")
            self.is_over = True

        def elapsed_time(self, end):
            assert end.is_over, "the end has not been waited for"
            return end.ms - self.ms

    properties = SimpleNamespace(
        L2_cache_size=CACHE_BYTES, major=9, minor=0, multi_processor_count=132, total_memory=2**36, uuid="1234-abcd"
    )
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", stand_in.synchronize)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: stand_in.allocated)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: stand_in.peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", stand_in.forget_peak)
    device = CudaDevice(tensors="cpu")
    device._other_data = SimpleNamespace(amax=stand_in.call("fill cache", 50.0), nbytes=device._other_data.nbytes)
    return SimpleNamespace(device=device, cuda=stand_in)


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


# The peers, as far as their sources say: the arguments, their defaults, and what is returned.


def reference_losses(logits, target, smoothing):
    return torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")


class OverwriteWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, options):
        with torch.enable_grad():
            own = logits.detach().clone().requires_grad_()
            loss = torch.nn.functional.cross_entropy(own, target, **options)
        logits.data.copy_(torch.autograd.grad(loss, own)[0])
        ctx.save_for_backward(logits.detach())
        return loss.detach()

    @staticmethod
    def backward(ctx, grad_output):
        return ctx.saved_tensors[0] * grad_output, None, None


def liger_cross_entropy(
    input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean",
    label_smoothing=0.0, lse_square_scale=0.0, softcap=None, return_z_loss=False,
):  # fmt: skip
    return OverwriteWithGradient.apply(input, target, {"weight": weight, "label_smoothing": label_smoothing})


def quack_cross_entropy(
    x, target, lse_partial=None, weight=None, ignore_index=-100, reduction="mean", inplace_backward=False
):
    return torch.nn.functional.cross_entropy(x, target, weight=weight)


def cross_entropy_loss(
    logits, labels, precomputed_lse=None, label_smoothing=0.0, logit_scale=1.0, lse_square_scale=0.0,
    ignore_index=-100, inplace_backward=False, process_group=None,
):  # fmt: skip
    return reference_losses(logits.float(), labels, label_smoothing), torch.zeros(len(labels))


class SoftmaxCrossEntropyLoss:
    @staticmethod
    def apply(logits, labels, smoothing=0.0, padding_idx=0, half_to_float=False):
        assert half_to_float == (logits.dtype in (torch.float16, torch.bfloat16))
        losses = reference_losses(logits.float() if half_to_float else logits, labels, smoothing)
        return losses.masked_fill(labels == padding_idx, 0.0)


PUBLISHED = {
    "liger_kernel.transformers.functional": {"liger_cross_entropy": liger_cross_entropy},
    "quack.cross_entropy": {"cross_entropy": quack_cross_entropy},
    "flash_attn.ops.triton.cross_entropy": {"cross_entropy_loss": cross_entropy_loss},
    "apex.contrib.xentropy": {"SoftmaxCrossEntropyLoss": SoftmaxCrossEntropyLoss},
}


def publish(monkeypatch, module, **contents):
    """Makes a module, and the packages above it, importable."""
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vars(sys.modules[module]).update(contents)


def withdraw(monkeypatch):
    """Makes the peers fail to import, installed or not."""
    for module in PUBLISHED:
        for name in (module.partition(".")[0], module):
            monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def published(monkeypatch):
    for module, contents in PUBLISHED.items():
        publish(monkeypatch, module, **contents)


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


# A case from the request to the tables.


@pytest.fixture
def gpu_result(gpu, published, monkeypatch):
    """A case of 4000 bytes as the worker runs it: every call takes 0.5 ms."""

    def timed(call):
        def made():
            gpu.cuda.clock_ms += 0.5
            return call()

        return made

    seconds = gpu.device.seconds
    monkeypatch.setattr(gpu.device, "seconds", lambda calls: seconds(map(timed, calls)))
    monkeypatch.setitem(worker.DEVICES, "cuda", lambda: gpu.device)
    monkeypatch.delattr(worker, "floor_tasks")  # the CPU's floor
    monkeypatch.setattr(worker, "find", lambda name: Case("cross_entropy", (10, 100), class_weight=True))
    request = Request(
        "", "cuda", "default", None, with_compile=False, quick=False, min_seconds=0.0, min_rounds=2, with_peers=True
    )
    return worker.run_case(request)


def test_the_worker_measures_ours_and_the_peers_over_rotating_inputs(gpu_result):
    assert list(gpu_result["contenders"]) == ["eager", "fused", "liger-kernel", "quack-kernels"]
    assert gpu_result["absent"].keys() == {"flash-attn", "apex"}
    assert gpu_result["inputs_in_rotation"] == 4
    assert gpu_result["bytes_moved"] == {"forward": 4080, "forward_backward": 8080}
    for which in PASSES:
        assert gpu_result["floor"][which]["median_s"] == pytest.approx(0.5e-3)
        for name in gpu_result["contenders"]:
            assert gpu_result["contenders"][name]["times"][which]["median_s"] == pytest.approx(0.5e-3)
            assert gigabytes_per_second(gpu_result, name, which) == pytest.approx(
                gpu_result["bytes_moved"][which] / 0.5e-3 / 1e9
            )


def report_of(*results):
    details = {"driver_version": "600.1", "cuda": "13.0", "clocks.max.sm": "1980 MHz", "clocks.max.memory": "2619 MHz"}
    machine = {
        "gpu": "a stand-in",
        "gpu_details": details,
        "torch": "2.13",
        "commit": None,
        "uncommitted_changes": False,
    }
    machine |= {"date": "2026-01-01T00:00:00Z"}
    return {"machine": machine, "command": [], "quick": False, "results": list(results), "failures": []}


def test_the_tables_show_bandwidth_and_why_a_peer_is_absent(gpu_result, capsys):
    gpu_result["contenders"] |= {"compile": gpu_result["contenders"]["eager"]}
    gpu_result["floor"]["forward"]["median_s"] = 4080 / 2000e9
    gpu_result["contenders"]["fused"]["times"]["forward"]["median_s"] = 4080 / 1500e9
    gpu_result["contenders"]["quack-kernels"]["times"]["forward"]["median_s"] = 4080 / 3000e9
    report = report_of(gpu_result, gpu_result)
    assert absences(report)["apex", "not comparable: it has no class weights"] == 2
    print_report(report, make_console(is_terminal=False))
    printed = capsys.readouterr().out
    times = next(line for line in printed.splitlines() if " fwd " in line and "±" in line)
    assert "0.50x" in times  # against the best, a peer
    speeds = next(line for line in printed.splitlines() if " fwd " in line and "75%" in line)
    assert [cell.strip() for cell in speeds.split("│")][-3:-1] == ["2000", "75%"]
    assert "1500" in speeds
    assert "apex takes no part (2 of 2 results): not comparable: it has no class weights" in printed

    markdown = write_markdown(report)
    assert "a stand-in, driver 600.1, CUDA 13.0, largest clocks SM 1980 MHz, memory 2619 MHz" in markdown
    row = next(line for line in markdown.splitlines() if line.startswith("| cross_entropy"))
    # eager and compile, fused, liger-kernel, quack-kernels, the copy
    assert row.endswith("| 0.0082 | 0.0082 | 1500 | 0.0082 | 3000 | 2000 |")
    assert len({line.count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1


def test_no_column_is_cut_off_where_everybody_takes_part(gpu_result, capsys):
    gpu_result["contenders"] = dict.fromkeys(CONTENDER_NAMES, gpu_result["contenders"]["eager"])
    gpu_result["case"] = max((case.name for case in GPU_GRID), key=len)
    print_report(report_of(gpu_result), make_console(is_terminal=False))
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert sum(gpu_result["case"] in line for line in printed.splitlines()) == 3  # in every table on one line


def test_plots_of_a_gpu_name_its_floor(gpu_result, tmp_path):
    paths = plots.draw(report_of(gpu_result), tmp_path, "cuda-full")
    assert [path.name[:9] for path in paths] == ["cuda-full", "cuda-full"]
    assert plots._time_panel("forward", "cuda").x_label == "time / that of a device copy of the same bytes (log scale)"


# The command.


def test_a_gpu_gets_the_whole_grid_and_large_vocabularies():
    assert GPU_GRID[: len(GRID)] == GRID
    more = [case.name for case in select(device="cuda") if case not in select()]
    shapes = ("8192x50257", "4096x128256", "32768x32000")
    assert more == [f"cross_entropy-{shape}-bfloat16" for shape in shapes]
    assert [find(name).name for name in more] == more
    required = {(8192, 1000), (65536, 10), (8, 21, 256, 256), (20_000_000,)}
    assert required <= {case.shape for case in GPU_GRID if case.dtype == "bfloat16"}


def test_cases_that_do_not_fit_into_free_memory_are_left_out(monkeypatch):
    small, large = Case("cross_entropy", (1000, 1000), "bfloat16"), Case("cross_entropy", (1000, 1000))
    assert (small.gpu_bytes, large.gpu_bytes) == (20_000_000, 40_000_000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20_000_000, 80_000_000_000))
    assert split_by_free_memory([large, small]) == ([small], [large])


def test_no_gpu_and_no_kernels_are_two_reasons(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in why_unusable()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "finds no GPU or no driver" in why_unusable()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fused_losses, "is_cuda_available", lambda: False)
    assert "fused_losses has no CUDA kernels loaded" in why_unusable()
    monkeypatch.setattr(fused_losses, "is_cuda_available", lambda: True)
    assert why_unusable() is None


def test_the_command_refuses_cuda_with_status_2_and_the_reason(monkeypatch, capsys):
    monkeypatch.setattr(cuda_device, "why_unusable", lambda: "there is none")
    with pytest.raises(SystemExit) as ended:
        command.main(["--device", "cuda"])
    assert ended.value.code == 2
    assert "--device cuda: there is none" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "with_peers"), [([], True), (["--no-peers"], False)])
def test_the_command_on_cuda_asks_for_peers_and_keeps_its_results_apart(
    flags, with_peers, monkeypatch, tmp_path, capsys
):
    asked = []

    def take_requests(requests, console, on_result, on_failure):
        asked.extend(requests)

    monkeypatch.setattr(cuda_device, "why_unusable", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**9, 10**10))
    monkeypatch.setattr("benchmarks.machine.describe", lambda device: {"load_average_at_start": 0.0, "cores": 1})
    monkeypatch.setattr("benchmarks.runner.run_all", take_requests)
    arguments = ["--device", "cuda", "--filter", "32000-b", "--filter", "x10-", "--output", str(tmp_path), *flags]
    assert command.main(arguments) == 0
    assert {(request.device, request.allocator, request.with_peers) for request in asked} == {
        ("cuda", "default", with_peers)
    }
    # 21 GB and 2.6 GB are not free.
    assert [request.case for request in asked] == [
        "cross_entropy-65536x10-float32", "cross_entropy-65536x10-bfloat16", "cross_entropy-32x10-float32"
    ]  # fmt: skip
    assert "left out: cross_entropy-32768x32000-bfloat16 needs about 21.0 GB" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["cuda-filtered.json"]


def test_a_request_for_the_cpu_has_no_peers():
    made = requests(
        [SMALL], device="cpu", allocators=["default"], threads=[None], with_compile=False, with_peers=False, quick=True,
        min_seconds=0.0,
    )  # fmt: skip
    assert not made[0].with_peers


def test_the_gpu_is_described_by_torch_and_nvidia_smi(gpu, monkeypatch):
    asked = []

    def nvidia_smi(command, **_):
        asked.append(command)
        return SimpleNamespace(returncode=0, stdout="600.1, 345 MHz, 405 MHz, 1980 MHz, 2619 MHz, 700.00 W\n")

    monkeypatch.setattr(subprocess, "run", nvidia_smi)
    described = describe_gpu()
    assert "--id=GPU-1234-abcd" in asked[0]
    assert described["driver_version"] == "600.1"
    assert described["clocks.max.memory"] == "2619 MHz"
    assert described["second_level_cache_bytes"] == CACHE_BYTES
    assert described["compute_capability"] == "9.0"


@pytest.mark.parametrize("problem", ["not installed", "fails"])
def test_a_machine_without_nvidia_smi_is_described_without_clocks(gpu, monkeypatch, problem):
    def nvidia_smi(command, **_):
        if problem == "not installed":
            raise FileNotFoundError(command[0])
        return SimpleNamespace(returncode=9, stdout="No devices were found")

    monkeypatch.setattr(subprocess, "run", nvidia_smi)
    described = describe_gpu()
    assert described["driver_version"] is None
    assert described["multiprocessors"] == 132


@pytest.mark.skipif(why_unusable() is not None, reason=f"no GPU to measure on: {why_unusable()}")
@pytest.mark.parametrize("case", QUICK_GRID, ids=lambda case: case.name)
def test_a_small_case_runs_on_the_gpu_that_is_here(case):
    request = Request(
        case.name,
        "cuda",
        "default",
        None,
        with_compile=False,
        quick=True,
        min_seconds=0.0,
        min_rounds=2,
        with_peers=True,
    )
    result = worker.run_case(request)
    for which in PASSES:
        assert gigabytes_per_second(result, "floor", which) > 0
        assert gigabytes_per_second(result, "fused", which) > 0
    assert result["contenders"]["fused"]["peak_extra_bytes"]["forward_backward"] >= result["logits_bytes"]
    assert len(result["absent"]) + len(result["contenders"]) >= 2 + len(PEER_NAMES)
