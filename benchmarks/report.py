"""The tables on the screen."""

from rich.console import Console
from rich.table import Table

from benchmarks.formats import ABSENT, gigabytes, megabytes, milliseconds, peak_megabytes, percentage_of_floor, ratio
from benchmarks.results import (
    FLOORS,
    PASSES,
    CaseResult,
    Failure,
    Pass,
    Report,
    Summary,
    absences,
    contenders_present,
    fused_speedup,
    gigabytes_per_second,
    rivals,
    times_floor,
)

# Without a terminal to ask, wide enough for the longest case name and all columns.
WIDTH_IN_A_FILE = 300
PASS_LABELS: dict[Pass, str] = {"forward": "fwd", "forward_backward": "fwd+bwd"}


def make_console(is_terminal: bool) -> Console:
    return Console() if is_terminal else Console(width=WIDTH_IN_A_FILE)


def print_report(report: Report, console: Console) -> None:
    if report["results"]:
        console.print(time_table(report))
        console.print(memory_table(report))
        if report["results"][0]["device"] == "cuda":
            console.print(bandwidth_table(report))
    for (peer, reason), count in absences(report).items():
        console.print(
            f"{peer} takes no part ({count} of {len(report['results'])} results): {reason}",
            markup=False,
            highlight=False,
        )
    for failure in report["failures"]:
        console.print(failure_text(failure), style="red", markup=False, highlight=False)


def failure_text(failure: Failure) -> str:
    return f"failed: {failure['case']} ({failure['allocator']} allocator): {failure['error']}"


def time_table(report: Report) -> Table:
    present = contenders_present(report)
    floors = FLOORS[report["results"][0]["device"]]
    table = Table(
        title="Time: median of a call in ms, ± half the interquartile range",
        caption="vs eager, compile, the best of all others: how many times faster fused is. "
        f"Floor: a {floors['forward']} (fwd) or {floors['forward_backward']} (fwd+bwd) of the same bytes; "
        "/ floor: fused's time as a multiple of it.",
    )
    table.add_column("case", overflow="fold")
    table.add_column("allocator")
    table.add_column("threads", justify="right")
    table.add_column("pass")
    for heading in (*present, "vs eager", "vs compile", "vs best", "floor", "/ floor"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in report["results"]:
        for which in PASSES:
            table.add_row(
                *(_setting_cells(result) if which == PASSES[0] else ["", "", ""]),
                PASS_LABELS[which],
                *(_time_cell(result, name, which) for name in present),
                ratio(fused_speedup(result, which, "eager")),
                ratio(fused_speedup(result, which, "compile")),
                ratio(fused_speedup(result, which, *rivals(result, which))),
                _spread(result["floor"][which]),
                ratio(times_floor(result, "fused", which)),
                end_section=which == PASSES[-1],
            )
    return table


def memory_table(report: Report) -> Table:
    present = contenders_present(report)
    table = Table(
        title="Peak extra memory of forward + backward in MB", caption="Beyond the inputs; the gradient is part of it."
    )
    for heading in ("case", "allocator"):
        table.add_column(heading, overflow="fold")
    for heading in ("threads", "logits", *present):
        table.add_column(heading, justify="right")
    for result in report["results"]:
        table.add_row(
            *_setting_cells(result),
            megabytes(result["logits_bytes"]),
            *(peak_megabytes(result, name, "forward_backward") for name in present),
        )
    return table


def bandwidth_table(report: Report) -> Table:
    present = contenders_present(report)
    table = Table(
        title="GB/s: the bytes that the loss must move over the median time",
        caption="Those bytes: logits and target read once, the gradient written once. Copy: the floor. "
        "Inputs: how many rotate, to be together larger than the second-level cache.",
    )
    table.add_column("case", overflow="fold")
    table.add_column("pass")
    for heading in ("inputs", "MB", *present, "copy", "fused / copy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in report["results"]:
        for which in PASSES:
            speeds = [gigabytes_per_second(result, name, which) for name in (*present, "floor")]
            table.add_row(
                result["case"] if which == PASSES[0] else "",
                PASS_LABELS[which],
                str(result["inputs_in_rotation"]),
                megabytes(result["bytes_moved"][which]),
                *(gigabytes(speed) for speed in speeds),
                percentage_of_floor(times_floor(result, "fused", which)),
                end_section=which == PASSES[-1],
            )
    return table


def _setting_cells(result: CaseResult) -> list[str]:
    return [result["case"], result["allocator"], str(result["threads"])]


def _time_cell(result: CaseResult, contender: str, which: Pass) -> str:
    entry = result["contenders"].get(contender)
    summary = entry["times"].get(which) if entry else None
    return _spread(summary) if summary else ABSENT


def _spread(summary: Summary) -> str:
    half_range = (summary["q75_s"] - summary["q25_s"]) / 2
    return f"{milliseconds(summary['median_s'])} ±{half_range / summary['median_s']:.0%}"
