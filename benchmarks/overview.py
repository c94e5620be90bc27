"""The picture on the front page: a few cells of a run, time and memory of eager torch, torch.compile and fused_losses.

python -m benchmarks.overview        draws docs/images/overview.svg from benchmarks/results/table.json
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.formats import megabytes, milliseconds
from benchmarks.plots import COLOURS, drawn_for_light_and_dark, save
from benchmarks.results import CaseResult, load, median_seconds, peak_extra_bytes

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "benchmarks" / "results" / "table.json"
PICTURE = ROOT / "docs" / "images" / "overview.svg"

CASES = {
    "cross_entropy-4096x32000-float32": "language model",
    "cross_entropy-4096x32000-bfloat16": "the same in bfloat16",
    "cross_entropy-8192x1000-float32": "images",
    "cross_entropy-8x21x256x256-float32": "segmentation",
    "cross_entropy-65536x10-float32": "few classes",
    "binary_cross_entropy_with_logits-20000000-float32": "binary, of logits",
}
CONTENDERS = {"eager": "torch", "compile": "torch.compile", "fused": "fused_losses"}
BAR_HEIGHT = 0.27


def cells() -> list[CaseResult]:
    """Of the run, in the order of CASES."""
    by_name = {result["case"]: result for result in load(SOURCE)["results"] if result["allocator"] == "default"}
    return [by_name[case] for case in CASES]


def milliseconds_of(result: CaseResult, contender: str) -> tuple[float, str]:
    seconds = median_seconds(result, contender, "forward_backward")
    assert seconds is not None
    return seconds, f"{milliseconds(seconds)} ms"


def megabytes_of(result: CaseResult, contender: str) -> tuple[float, str]:
    count = peak_extra_bytes(result, contender, "forward_backward")
    assert count is not None
    return count, f"{megabytes(count)} MB"


PANELS: dict[str, Callable[[CaseResult, str], tuple[float, str]]] = {
    "time of loss and gradient": milliseconds_of,
    "memory beyond the logits, gradient included": megabytes_of,
}


def draw() -> None:
    with drawn_for_light_and_dark():
        figure, axes = pyplot.subplots(1, len(PANELS), sharey=True, figsize=(10, 5), layout="constrained")
        for axis, (title, value) in zip(axes, PANELS.items(), strict=True):
            _draw_panel(axis, title, value)
        labels = [
            f"{words}\n{' x '.join(map(str, result['shape']))}"
            for words, result in zip(CASES.values(), cells(), strict=True)
        ]
        axes[0].set_yticks(range(len(CASES)), labels)
        axes[0].set_ylim(len(CASES) - 0.5, -0.5)  # the first case on top
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
        save(figure, PICTURE)


def _draw_panel(axis: Axes, title: str, value: Callable[[CaseResult, str], tuple[float, str]]) -> None:
    largest = [value(result, "eager")[0] for result in cells()]
    for number, (contender, name) in enumerate(CONTENDERS.items()):
        values = [value(result, contender) for result in cells()]
        shares = [amount / whole for (amount, _), whole in zip(values, largest, strict=True)]
        places = [case + (number - 1) * BAR_HEIGHT for case in range(len(CASES))]
        bars = axis.barh(places, shares, BAR_HEIGHT, label=name, color=COLOURS[contender])
        axis.bar_label(bars, [text for _, text in values], padding=3, fontsize="small")
    axis.set_title(f"{title}, torch = 1", fontsize="medium", loc="left")
    axis.set_xlim(0, 1.25)
    axis.set_xticks([])
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)


if __name__ == "__main__":
    draw()
