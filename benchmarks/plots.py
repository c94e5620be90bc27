"""SVG bar charts: time over floor for each setting, and peak extra memory.

Note [Light and dark]
A picture has no background, and its text and lines have the colour of the page's text: an SVG that a page shows as an
image asks by itself whether the page is light or dark. Text stays text, in whatever font the reader has.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import (
    CONTENDER_NAMES,
    FLOORS,
    PASS_TITLES,
    PASSES,
    CaseResult,
    Pass,
    Report,
    peak_extra_bytes,
    times_floor,
)

# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = {
    "eager": "#999999",
    "compile": "#56B4E9",
    "fused": "#D55E00",
    "fused compiled": "#882255",
    "fused in-place": "#E69F00",
    "liger-kernel": "#009E73",
    "quack-kernels": "#0072B2",
    "flash-attn": "#CC79A7",
    "apex": "#F0E442",
}
FOREGROUND = "#24292f"  # on light
ON_DARK = "#d0d7de"
ALL_BARS_HEIGHT = 0.8  # of the distance between two cases
INCHES_PER_CASE = 0.45


@dataclass(frozen=True)
class Panel:
    """One set of axes: a value for every case and contender."""

    title: str
    x_label: str
    x_scale: str
    number: str  # how a value is written at the end of its bar
    value: Callable[[CaseResult, str], float | None]


@contextmanager
def drawn_for_light_and_dark() -> Iterator[None]:
    """Figures that :func:`save` can save. See Note [Light and dark]."""
    colours: tuple[Any, ...] = (
        "text.color",
        "axes.edgecolor",
        "axes.labelcolor",
        "axes.titlecolor",
        "xtick.color",
        "ytick.color",
    )
    fixed: dict[Any, Any] = {
        "svg.hashsalt": "fused_losses",  # else every run would give other element ids, and a diff that says nothing
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "savefig.transparent": True,
        "legend.facecolor": "none",
    }
    with matplotlib.rc_context(fixed | dict.fromkeys(colours, FOREGROUND)):
        yield


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    style = f"svg {{ color: {FOREGROUND} }} @media (prefers-color-scheme: dark) {{ svg {{ color: {ON_DARK} }} }}"
    drawing = path.read_text().replace(FOREGROUND, "currentColor")
    path.write_text(drawing.replace("<defs>", f"<style>{style}</style>\n <defs>", 1))


def draw(report: Report, directory: Path, stem: str) -> list[Path]:
    """Writes the plots of a report as `stem-….svg` and returns their paths."""
    with drawn_for_light_and_dark():
        return _draw_all(report, directory, stem)


def _draw_all(report: Report, directory: Path, stem: str) -> list[Path]:
    written = []
    settings = sorted({(result["allocator"], result["threads"]) for result in report["results"]})
    for allocator, threads in settings:
        path = directory / f"{stem}-time_over_floor-{allocator}-{threads}_threads.svg"
        title = f"Time as a multiple of the floor ({allocator} allocator, threads: {threads})"
        results = _under(report, allocator, threads)
        _draw(results, [_time_panel(which, results[0]["device"]) for which in PASSES], title, path)
        written.append(path)
    if settings:
        # Bytes asked of the allocator depend neither on how it maps them nor on the threads: one setting shows all.
        path = directory / f"{stem}-peak_memory.svg"
        _draw(_under(report, *settings[0]), [_memory_panel("forward_backward")], "Peak memory beyond the inputs", path)
        written.append(path)
    return written


def _under(report: Report, allocator: str, threads: int) -> list[CaseResult]:
    return [r for r in report["results"] if r["allocator"] == allocator and r["threads"] == threads]


def _time_panel(which: Pass, device: str) -> Panel:
    return Panel(
        PASS_TITLES[which],
        f"time / that of a {FLOORS[device][which]} of the same bytes (log scale)",
        "log",
        "{:.3g}",
        lambda result, contender: times_floor(result, contender, which),
    )


def _memory_panel(which: Pass) -> Panel:
    def times_logits(result: CaseResult, contender: str) -> float | None:
        count = peak_extra_bytes(result, contender, which)
        return None if count is None else count / result["logits_bytes"]

    return Panel(
        f"{PASS_TITLES[which]}, with the gradient", "peak / bytes of the logits", "linear", "{:.2f}", times_logits
    )


def _draw(results: Sequence[CaseResult], panels: Sequence[Panel], title: str, path: Path) -> None:
    size = (4 + 6 * len(panels), 1.8 + INCHES_PER_CASE * len(results))
    figure, axes = pyplot.subplots(1, len(panels), sharey=True, squeeze=False, figsize=size, layout="constrained")
    for axis, panel in zip(axes[0], panels, strict=True):
        _draw_panel(axis, panel, results)
    axes[0][0].set_yticks(range(len(results)), [result["case"] for result in results], fontsize="small")
    axes[0][0].set_ylim(len(results) - 0.4, -0.6)  # the first case on top
    handles, labels = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(title)
    save(figure, path)


def _draw_panel(axis: Axes, panel: Panel, results: Sequence[CaseResult]) -> None:
    present = [name for name in CONTENDER_NAMES if any(name in result["contenders"] for result in results)]
    height = ALL_BARS_HEIGHT / len(present)
    for position, contender in enumerate(present):
        values = [panel.value(result, contender) for result in results]
        if all(value is None for value in values):
            continue
        widths = [np.nan if value is None else value for value in values]  # NaN draws no bar
        centres = np.arange(len(results)) + (position - (len(present) - 1) / 2) * height
        bars = axis.barh(centres, widths, height, label=contender, color=COLOURS[contender])
        axis.bar_label(
            bars, ["" if value is None else panel.number.format(value) for value in values], padding=2, fontsize=6
        )
    axis.axvline(1.0, color=FOREGROUND, linewidth=0.8)
    axis.set_xscale(panel.x_scale)
    axis.margins(x=0.1)  # room for the figures at the ends of the bars
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_title(panel.title, fontsize="medium")
    axis.set_xlabel(panel.x_label)
    axis.grid(axis="x", linewidth=0.3)
    axis.set_axisbelow(True)
