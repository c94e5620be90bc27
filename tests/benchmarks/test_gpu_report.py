"""A case on the stand-in, from the request to the tables and plots."""

import pytest

from benchmarks import plots, worker
from benchmarks.cases import GPU_GRID, Case
from benchmarks.markdown import write_markdown
from benchmarks.report import make_console, print_report
from benchmarks.request import Request
from benchmarks.results import CONTENDER_NAMES, PASSES, absences, gigabytes_per_second


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
