"""The command line. What needs torch, rich or matplotlib is imported once it is known to be needed."""

import argparse
import shlex
import sys
from pathlib import Path

from benchmarks.cases import DTYPES, Case, grid, select

DEFAULT_OUTPUT = Path(__file__).parent / "results"

DESCRIPTION = """\
Times fused_losses against torch eager and torch.compile: forward, forward + backward, and peak extra memory.

Each case runs in its own process; inside it the contenders take turns, sample by sample. Beside them runs the case's
floor: a warm read of the logits (forward), or a warm copy of them (forward + backward). Results go to the screen and,
as JSON and SVG plots, to the output folder: full.json, or quick.json with --quick, or filtered.json where --filter or
--dtype left some cases out; on a GPU cuda-full.json and so on. docs/benchmarking_gpu.md tells what is different there.
"""

EXAMPLES = """\
examples:
  python -m benchmarks                                          the whole grid, half an hour or more
  python -m benchmarks --quick --no-compile                     does everything still run?
  python -m benchmarks --filter cross_entropy-4096x32000        four cases
  python -m benchmarks --filter 8192x1000 --threads 1 --threads 2
  python -m benchmarks --device cuda --filter 50257             one of the cases that only a GPU gets
  python -m benchmarks --markdown benchmarks/results/full.json  the tables of docs/results.md
"""


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = cli.add_argument_group("what is measured")
    what.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="SUBSTRING",
        help="only cases with this in their name; repeat for more (see --list)",
    )
    what.add_argument("--dtype", action="append", default=[], choices=DTYPES, help="only this dtype; repeatable")
    what.add_argument(
        "--quick",
        action="store_true",
        help="small cells, few repetitions, under a minute; without --filter only a handful of cases",
    )
    what.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    what.add_argument(
        "--no-peers", action="store_true", help="on cuda: leave out liger-kernel and the others of benchmarks/peers.py"
    )
    what.add_argument("--list", action="store_true", help="print the names of the cases and stop")

    how = cli.add_argument_group("how")
    how.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    how.add_argument(
        "--allocator",
        choices=("default", "thp", "both"),
        help="CPU memory: torch's default, huge pages (THP_MEM_ALLOC_ENABLE=1), or both one after the other "
        "(default: both; with --quick or on cuda: default)",
    )
    how.add_argument(
        "--threads", action="append", type=_positive_int, metavar="N", help="repeatable (default: torch's own choice)"
    )
    how.add_argument(
        "--one-process",
        action="store_true",
        help="on cuda: every case in this process, which spares each the seconds that torch takes to load",
    )
    how.add_argument(
        "--min-time",
        type=float,
        metavar="SECONDS",
        help="measuring time for each contender and pass, on average (default: 1; with --quick 0.02)",
    )

    where = cli.add_argument_group("output")
    where.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, metavar="DIR", help="default: benchmarks/results")
    where.add_argument("--plot-only", type=Path, metavar="JSON", help="only draw the plots of an earlier run")
    where.add_argument("--markdown", type=Path, metavar="JSON", help="only print an earlier run as Markdown tables")
    return cli


def _positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def main(arguments: list[str] | None = None) -> int:
    cli = parser()
    options = cli.parse_args(arguments)
    if options.markdown:
        from benchmarks.markdown import write_markdown
        from benchmarks.results import load

        sys.stdout.write(write_markdown(load(options.markdown)))
        return 0
    if options.plot_only:
        from benchmarks.plots import draw
        from benchmarks.results import load

        for path in draw(load(options.plot_only), options.output, options.plot_only.stem):
            print(path)
        return 0

    cases = select(options.filter, options.dtype, device=options.device, quick=options.quick)
    if not cases:
        cli.error("no case matches; --list prints their names")
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    if options.device == "cuda" and options.allocator not in (None, "default"):
        cli.error("--allocator is about CPU memory")
    if options.one_process and options.device != "cuda":
        cli.error("--one-process: the allocator's settings need a process for each case on the CPU")
    if options.device == "cuda":
        from benchmarks.cuda_device import why_unusable

        if reason := why_unusable():
            cli.error(f"--device cuda: {reason}")
    return _measure(options, cases)


def _measure(options: argparse.Namespace, cases: list[Case]) -> int:
    from benchmarks import machine, plots, report, results
    from benchmarks.cuda_device import split_by_free_memory
    from benchmarks.request import Allocator, requests
    from benchmarks.runner import run_all, run_in_subprocess, run_in_this_process

    allocator = options.allocator or ("default" if options.quick or options.device == "cuda" else "both")
    allocators: dict[str, list[Allocator]] = {"default": ["default"], "thp": ["thp"], "both": ["default", "thp"]}
    min_seconds = options.min_time if options.min_time is not None else 0.02 if options.quick else 1.0
    run: results.Report = {
        "machine": machine.describe(options.device),
        "command": ["python", "-m", "benchmarks", *map(shlex.quote, sys.argv[1:])],
        "quick": options.quick,
        "results": [],
        "failures": [],
    }
    stem = "quick" if options.quick else "full" if len(cases) == len(grid(options.device)) else "filtered"
    too_large: list[Case] = []
    if options.device == "cuda":
        stem = f"cuda-{stem}"
        if not options.quick:
            cases, too_large = split_by_free_memory(cases)
    json_path = options.output / f"{stem}.json"

    def keep(result: results.CaseResult) -> None:
        run["results"].append(result)
        results.save(run, json_path)  # after every case: an interrupted run keeps what it has

    console = report.make_console(sys.stdout.isatty())
    if warning := machine.busy_warning(run["machine"]):
        console.print(warning, style="yellow")
    for case in too_large:
        console.print(
            f"left out: {case.name} needs about {case.gpu_bytes / 1e9:.1f} GB of free GPU memory", style="yellow"
        )
    run_all(
        requests(
            cases,
            device=options.device,
            allocators=allocators[allocator],
            threads=options.threads or [None],
            with_compile=not options.no_compile,
            with_peers=options.device == "cuda" and not options.no_peers,
            quick=options.quick,
            min_seconds=min_seconds,
        ),
        console,
        keep,
        run["failures"].append,
        run_in_this_process if options.one_process else run_in_subprocess,
    )
    results.save(run, json_path)
    report.print_report(run, console)
    for path in (json_path, *plots.draw(run, options.output, stem)):
        console.print(f"wrote {path}", highlight=False)
    return 1 if run["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
