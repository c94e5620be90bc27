"""The picture of a comparison: both curves over one another, their difference below, time and memory at the side."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.compare import FLOAT32_UNIT, Comparison, relative_difference
from examples.units import bytes_text, seconds_text

TORCH_COLOUR = "#e07b39"
FUSED_COLOUR = "#1f5fa8"
BOUND_COLOUR = "#a02020"
ERROR_COLOUR = "#9a9a9a"


def save_picture(comparison: Comparison, path: Path) -> None:
    with matplotlib.rc_context(
        {
            "font.size": 9.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.edgecolor": "#666666",
            "legend.frameon": False,
        }
    ):
        # A figure of its own instead of pyplot's current one: no display is looked for.
        figure = Figure(figsize=(10.5, 5.6), layout="constrained")
        figure.suptitle(comparison.program.title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        places = figure.add_gridspec(2, 2, width_ratios=[2.4, 1], height_ratios=[1, 1])
        curves = figure.add_subplot(places[0, 0])
        draw_curves(curves, comparison)
        draw_difference(figure.add_subplot(places[1, 0], sharex=curves), comparison)
        draw_bars(
            figure.add_subplot(places[0, 1]),
            "Time of the loss, per step",
            [comparison.torch.step_seconds, comparison.fused.step_seconds],
            seconds_text,
        )
        draw_bars(
            figure.add_subplot(places[1, 1]),
            "Memory of the loss",
            [comparison.torch.memory.peak_bytes, comparison.fused.memory.peak_bytes],
            bytes_text,
        )
        figure.savefig(path, dpi=130)


def draw_curves(axes: Axes, comparison: Comparison) -> None:
    axes.set_title("Loss")
    # The fused curve lies on torch's: torch's is drawn broad, so that both can be seen.
    axes.plot(comparison.torch.curve, color=TORCH_COLOUR, linewidth=5, alpha=0.55, label="torch")
    axes.plot(comparison.fused.curve, color=FUSED_COLOUR, linewidth=1.4, label="fused_losses")
    axes.tick_params(labelbottom=False)
    axes.legend()


def draw_difference(axes: Axes, comparison: Comparison) -> None:
    axes.set_title("Relative difference of the losses")
    difference = relative_difference(comparison.fused.curve, comparison.torch.curve)
    float32_error = relative_difference(comparison.torch.curve, comparison.reference.curve)
    # Equal to the last bit cannot be drawn on a logarithmic axis: such steps stand at its lower end.
    lowest = FLOAT32_UNIT / 16
    axes.axhline(comparison.bound, color=BOUND_COLOUR, linestyle="--", linewidth=1.2, label="bound")
    axes.plot(np.maximum(float32_error, lowest), color=ERROR_COLOUR, linewidth=1, label="torch against float64")
    axes.plot(np.maximum(difference, lowest), color=FUSED_COLOUR, linewidth=1.2, label="fused_losses against torch")
    axes.set_yscale("log")
    axes.set_ylim(lowest, 30 * comparison.bound)
    axes.set_xlabel("step")
    axes.legend(ncols=3, loc="upper left", columnspacing=1.2, fontsize=8.5)


def draw_bars(axes: Axes, title: str, values: list[float], text: Callable[[float], str]) -> None:
    axes.set_title(title)
    bars = axes.barh(["torch", "fused_losses"], values, color=[TORCH_COLOUR, FUSED_COLOUR], height=0.55)
    axes.bar_label(bars, [text(value) for value in values], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
