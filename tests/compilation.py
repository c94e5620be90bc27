"""Compiling C++ for the tests. What was compiled before is compiled again only where something has changed.

Any number of processes may ask for the same file at once, as the workers of pytest-xdist do: one makes it, the others
wait, and a file that is in use is replaced, never written over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # not Linux: nothing is compiled here
    fcntl = None  # type: ignore[assignment]

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


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Alone with a file, among the threads of all processes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f"{target.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
        yield


def write_if_changed(path: Path, text: str) -> None:
    """Other processes see the file as it was or as it is."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{os.getpid()}")
        new.write_text(text)
        new.replace(path)


def compile_source(source: Path, target: Path, flags: Iterable[str], compiler: Sequence[str] = COMPILER) -> Path:
    """The object file ``target``, of a source in C++ whatever its name."""
    dependencies = target.with_suffix(".d")
    command = [*compiler, *flags, "-x", "c++", "-c", str(source), "-MMD", "-MF", str(dependencies), "-MT", str(target)]
    return _make(target, command, dependencies)


def link(objects: list[Path], target: Path, flags: Iterable[str], compiler: Sequence[str] = COMPILER) -> Path:
    return _make(target, [*compiler, *map(str, objects), *flags], objects)


def _make(target: Path, command: list[str], inputs: list[Path] | Path) -> Path:
    """Runs a command unless the same one has made `target` of the same inputs, or of those that a make rule lists.

    The command stands beside the target, with a digest of all that it has read: a new checkout of the same files, whose
    times are new, finds what was compiled.
    """
    record = target.with_name(f"{target.name}.made_of.json")
    with locked(target):
        if target.exists() and record.exists():
            made_of = json.loads(record.read_text())
            if made_of["command"] == command and all(_digest(path) == it for path, it in made_of["inputs"].items()):
                return target
        record.unlink(missing_ok=True)
        began = time.time()
        new = target.with_name(f"{target.name}.new")
        run([*command, "-o", str(new)])
        new.replace(target)
        if isinstance(inputs, Path):
            prerequisites = inputs.read_text().split(":", 1)[1].replace("\\\n", " ")
            inputs = [Path(name) for name in shlex.split(prerequisites)]
        if all(path.stat().st_mtime < began for path in inputs):  # not edited meanwhile
            made_of = {"command": command, "inputs": {str(path): _digest(path) for path in inputs}}
            write_if_changed(record, json.dumps(made_of))
    return target


def _digest(name: str | Path) -> str | None:
    """Of a file's content; None where there is none."""
    path = Path(name)
    if not path.exists():
        return None
    state = path.stat()
    return _digest_of(str(path), state.st_mtime_ns, state.st_size, state.st_ino)


@cache
def _digest_of(name: str, *state: int) -> str:
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()
