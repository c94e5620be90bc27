"""What is printed and written about comparisons: numbers, verdict, the files, and the table over all programs."""

import json
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from examples.compare import SAFETY, Comparison
from examples.picture import save_picture
from examples.units import bytes_text, ratio_text, seconds_text

COST_EXPLAINED = (
    "Time: the loss alone, forward and backward, median of the steps. "
    "Memory: the most that this holds on top of the loss's input, gradient included."
)


def picture_path(comparison: Comparison, folder: Path) -> Path:
    return folder / f"{comparison.program.name}.png"


def write_files(comparison: Comparison, folder: Path) -> None:
    """The picture, and the numbers behind it for whoever wants to compute with them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_picture(comparison, picture_path(comparison, folder))
    torch, fused = comparison.torch, comparison.fused
    numbers = {
        "passed": comparison.passed,
        "difference": comparison.difference,
        "bound": comparison.bound,
        "float32_error": comparison.float32_error,
        "torch_curve": torch.curve.tolist(),
        "fused_curve": fused.curve.tolist(),
        "torch_loss_seconds": torch.step_seconds,
        "fused_loss_seconds": fused.step_seconds,
        "torch_loss_bytes": torch.memory.peak_bytes,
        "fused_loss_bytes": fused.memory.peak_bytes,
        "torch_step_seconds": torch.whole_step_seconds,
        "fused_step_seconds": fused.whole_step_seconds,
        "torch_step_bytes": torch.whole_memory.peak_bytes,
        "fused_step_bytes": fused.whole_memory.peak_bytes,
        "torch_score": torch.score,
        "fused_score": fused.score,
    }
    (folder / f"{comparison.program.name}.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")


def print_comparison(comparison: Comparison, folder: Path, console: Console) -> None:
    program, torch, fused = comparison.program, comparison.torch, comparison.fused
    table = Table()
    table.add_column()
    for heading in ("torch", "fused_losses", "ratio"):
        table.add_column(heading, justify="right")
    table.add_row("loss at the first step", f"{torch.curve[0]:.6f}", f"{fused.curve[0]:.6f}", "")
    table.add_row("loss at the last step", f"{torch.curve[-1]:.6f}", f"{fused.curve[-1]:.6f}", "")
    table.add_row(program.score_name, f"{torch.score:.4g}", f"{fused.score:.4g}", "")
    for quantity, text, of_torch, of_fused in (
        ("time of the loss in a step", seconds_text, torch.step_seconds, fused.step_seconds),
        ("memory of the loss", bytes_text, torch.memory.peak_bytes, fused.memory.peak_bytes),
        ("time of a whole step", seconds_text, torch.whole_step_seconds, fused.whole_step_seconds),
        ("memory of a whole step", bytes_text, torch.whole_memory.peak_bytes, fused.whole_memory.peak_bytes),
    ):
        table.add_row(quantity, text(of_torch), text(of_fused), ratio_text(of_torch, of_fused))
    console.print(program.title, style="bold", highlight=False)
    console.print(table)
    console.print(COST_EXPLAINED, highlight=False)
    console.print(
        f"Largest relative difference of the two curves over {len(torch.curve)} steps: {comparison.difference:.1e}. "
        f"Bound: {comparison.bound:.1e}, from float32 itself: torch's own run is {comparison.float32_error:.1e} away "
        f"from the same training in float64; {SAFETY:.0f} times that is allowed, and one float32 unit.",
        highlight=False,
    )
    console.print(verdict(comparison))
    console.print(f"Picture: {picture_path(comparison, folder)}\n", highlight=False, soft_wrap=True)


def verdict(comparison: Comparison) -> str:
    if comparison.passed:
        return "[green]The curves agree.[/green]"
    if not comparison.agrees:
        return "[red]THE CURVES DISAGREE.[/red]"
    return "[red]NOT COMPARED: one of the runs used the other's loss.[/red]"


def print_summary(comparisons: list[Comparison], folder: Path, console: Console) -> None:
    # Without vertical rules, and with the pictures below, the table fits into a terminal of 80 columns.
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("program", no_wrap=True)
    for heading in (
        "largest\ndiffer.",
        "\nbound",
        "time\ntorch",
        "\nfused",
        "\nratio",
        "memory\ntorch",
        "\nfused",
        "\nratio",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for comparison in comparisons:
        torch, fused = comparison.torch, comparison.fused
        table.add_row(
            comparison.program.name,
            f"[{'green' if comparison.passed else 'red'}]{comparison.difference:.1e}",
            f"{comparison.bound:.1e}",
            seconds_text(torch.step_seconds),
            seconds_text(fused.step_seconds),
            ratio_text(torch.step_seconds, fused.step_seconds),
            bytes_text(torch.memory.peak_bytes),
            bytes_text(fused.memory.peak_bytes),
            ratio_text(torch.memory.peak_bytes, fused.memory.peak_bytes),
        )
    console.print("All programs", style="bold")
    console.print(table)
    console.print(f"{COST_EXPLAINED}\nPictures:", highlight=False)
    for comparison in comparisons:
        console.print(f"  {picture_path(comparison, folder)}", highlight=False, soft_wrap=True)
