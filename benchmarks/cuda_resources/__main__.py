"""The command line. It ends with status 1 where a kernel spills or a wide access is missing."""

import argparse
import sys
import time
from pathlib import Path

from benchmarks.cuda_resources.budget import BUDGET_ARCHITECTURES, BUDGET_SOURCES, shares
from benchmarks.cuda_resources.budget_table import write_budget
from benchmarks.cuda_resources.compilation import CompilationError, compile_all
from benchmarks.cuda_resources.evidence import collect, complaints
from benchmarks.cuda_resources.markdown import write_markdown
from benchmarks.cuda_resources.occupancy import LIMITS
from benchmarks.cuda_resources.toolchain import MissingToolError, find_toolchain

ARCHITECTURES = (80, 86, 90, 100, 120)


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python -m benchmarks.cuda_resources",
        description="Compiles the CUDA kernels, without a GPU, and tabulates registers, spills, occupancy and the "
        "width of memory accesses. Needs nvcc; nvdisasm (pip install nvidia-cuda-nvdisasm) for the machine code.",
    )
    cli.add_argument(
        "--architectures",
        type=architectures,
        metavar="LIST",
        help=f"compute capabilities times ten, default {','.join(map(str, ARCHITECTURES))}, "
        f"with --budget {','.join(map(str, BUDGET_ARCHITECTURES))}",
    )
    cli.add_argument(
        "--budget",
        action="store_true",
        help="only the instructions an element beside what a GPU can issue while its memory moves it",
    )
    cli.add_argument("--write", type=Path, metavar="FILE", help="write the tables there, not to the screen")
    cli.add_argument("--jobs", type=int, default=2, help="compilers at a time, default 2")
    return cli


def architectures(text: str) -> tuple[int, ...]:
    numbers = tuple(sorted({int(part) for part in text.split(",")}))
    if unknown := set(numbers) - LIMITS.keys():
        raise argparse.ArgumentTypeError(f"no limits are known for {sorted(unknown)}, only for {sorted(LIMITS)}")
    return numbers


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    start = time.perf_counter()
    chosen = options.architectures or (BUDGET_ARCHITECTURES if options.budget else ARCHITECTURES)
    try:
        toolchain = find_toolchain()
        units = compile_all(toolchain, chosen, BUDGET_SOURCES if options.budget else None, jobs=options.jobs)
        budget = write_budget(shares(toolchain, units))
    except (MissingToolError, CompilationError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.budget:
        _put(budget, options.write)
        return 0
    evidence = collect(toolchain, units)
    _put(f"{write_markdown(evidence, toolchain)}\n{budget}", options.write)
    wrong = complaints(evidence)
    for complaint in wrong:
        print(complaint, file=sys.stderr)
    where = f"{len(evidence)} kernels on {len(chosen)} architectures"
    print(f"{where}, {len(wrong)} complaints, {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 1 if wrong else 0


def _put(text: str, file: Path | None) -> None:
    if file is None:
        print(text)
    else:
        file.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
