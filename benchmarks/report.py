"""The tables on the screen."""

from rich.console import Console
from rich.table import Table

from benchmarks.formats import ABSENT, megabytes, milliseconds, peak_megabytes, ratio
from benchmarks.results import (
    PASSES,
    CaseResult,
    Failure,
    Pass,
    Report,
    Summary,
    contenders_present,
    fused_speedup,
    times_floor,
)

# Without a terminal to ask, wide enough for the longest case name and all columns.
WIDTH_IN_A_FILE = 210
PASS_LABELS: dict[Pass, str] = {"forward": "fwd", "forward_backward": "fwd+bwd"}


def make_console(is_terminal: bool) -> Console:
    return Console() if is_terminal else Console(width=WIDTH_IN_A_FILE)


def print_report(report: Report, console: Console) -> None:
    if report["results"]:
        console.print(time_table(report))
        console.print(memory_table(report))
    for failure in report["failures"]:
        console.print(failure_text(failure), style="red", markup=False, highlight=False)


def failure_text(failure: Failure) -> str:
    return f"failed: {failure['case']} ({failure['allocator']} allocator): {failure['error']}"


def time_table(report: Report) -> Table:
    present = contenders_present(report)
    table = Table(
        title="Time: median of a call in ms, ± half the interquartile range",
        caption="vs eager, compile, the best of both: how many times faster fused is. Floor: a warm read (fwd) or copy "
        "(fwd+bwd) of the same bytes; / floor: fused's time as a multiple of it.",
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
                ratio(fused_speedup(result, which, "eager", "compile")),
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


def _setting_cells(result: CaseResult) -> list[str]:
    return [result["case"], result["allocator"], str(result["threads"])]


def _time_cell(result: CaseResult, contender: str, which: Pass) -> str:
    entry = result["contenders"].get(contender)
    summary = entry["times"].get(which) if entry else None
    return _spread(summary) if summary else ABSENT


def _spread(summary: Summary) -> str:
    half_range = (summary["q75_s"] - summary["q25_s"]) / 2
    return f"{milliseconds(summary['median_s'])} ±{half_range / summary['median_s']:.0%}"
