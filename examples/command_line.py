"""The command line that all examples share: `--quick`, `--output`, and an exit status that says whether all is well."""

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.compare import Comparison, compare
from examples.program import Program
from examples.report import print_comparison, print_summary, write_files


def main(*programs: Callable[[bool], Program], arguments: Sequence[str] | None = None) -> None:
    """Compares the losses on each program and leaves with status 1 if they disagree on one. A program is made
    from one argument: whether to be quick."""
    parser = ArgumentParser(description="Trains with torch's losses and with fused_losses and compares the two.")
    parser.add_argument("--quick", action="store_true", help="a few steps on little data, to see that it works")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).with_name("output"),
        help="folder for pictures and numbers (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    console = Console()
    comparisons = []
    for make_program in programs:
        comparison = compare_with_progress(make_program(options.quick), console)
        write_files(comparison, options.output)
        print_comparison(comparison, options.output, console)
        comparisons.append(comparison)
    if len(comparisons) > 1:
        print_summary(comparisons, options.output, console)
    sys.exit(not all(comparison.passed for comparison in comparisons))


def compare_with_progress(program: Program, console: Console) -> Comparison:
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # The bars vanish when the program is done: the table that follows says it all.
    with Progress(*columns, console=console, transient=True) as progress:
        return compare(program, progress)
