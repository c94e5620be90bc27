"""Compiling C++ for the tests. What was compiled before is compiled again only where something has changed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
EMULATION = ROOT / "tests" / "cuda" / "emulation"
COMPILER = shlex.split(os.environ.get("CXX", "g++"))


@cache
def emulation_unavailable() -> str | None:
    """Why the emulation of CUDA does not run here, or nothing."""
    if sys.platform != "linux":
        return "it switches stacks as Linux allows"
    if shutil.which(COMPILER[0]) is None:
        return f"there is no compiler {COMPILER[0]}"
    return None


def run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{result.stderr[-4000:]}")


def compile_source(source: Path, target: Path, flags: Iterable[str]) -> Path:
    """The object file ``target``, of a source in C++ whatever its name."""
    dependencies = target.with_suffix(".d")
    compilation = ["-x", "c++", "-c", str(source), "-MMD", "-MF", str(dependencies)]
    target.parent.mkdir(parents=True, exist_ok=True)
    return _make(target, [*COMPILER, *flags, *compilation, "-o", str(target)], dependencies)


def link(objects: list[Path], target: Path, flags: Iterable[str]) -> Path:
    return _make(target, [*COMPILER, *map(str, objects), "-o", str(target), *flags], objects)


def _make(target: Path, command: list[str], inputs: list[Path] | Path) -> Path:
    """Runs a command unless the same one has made `target` of the same inputs, or of those that a make rule lists.

    The command stands beside the target, with the time at which it began.
    """
    record = target.with_name(f"{target.name}.json")
    if target.exists() and record.exists() and json.loads(record.read_text()) == command:
        began = record.stat().st_mtime
        if isinstance(inputs, Path):
            prerequisites = inputs.read_text().split(":", 1)[1].replace("\\\n", " ")
            inputs = [Path(name) for name in shlex.split(prerequisites)]
        if all(path.exists() and path.stat().st_mtime < began for path in inputs):
            return target
    record.unlink(missing_ok=True)
    began = time.time()
    run(command)
    record.write_text(json.dumps(command))
    os.utime(record, (began, began))
    return target
