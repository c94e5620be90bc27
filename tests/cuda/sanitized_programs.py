"""Native programs that run CUDA sources under emulation, each with and without the sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from compilation import EMULATION, ROOT, compile_source, emulation_unavailable, link, write_if_changed

BUILD = ROOT / "build" / "sanitized_programs"
ORDERS = ["ascending", "descending", "random", "warps"]
FLAVORS = {
    "plain": [],
    "ucontext": ["-DFUSED_LOSSES_EMULATION_UCONTEXT"],  # how it switches where no assembly is written
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
# Some kernels map memory, in some runs, where ThreadSanitizer needs it. Some containers forbid this command.
NO_RANDOM_ADDRESSES = ["setarch", "-R"]


@dataclass(frozen=True)
class Unit:
    source: Path
    optimization: str = "-O1"
    include: Path = EMULATION  # besides the emulation


@dataclass(frozen=True)
class Program:
    name: str
    units: tuple[Unit, ...]


def execute(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    foreign = ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS")
    clean = {k: v for k, v in os.environ.items() if k not in foreign and not k.startswith("FUSED_LOSSES_EMULATION_")}
    return subprocess.run(
        command, capture_output=True, text=True, env={**clean, **environment}, timeout=600, check=False
    )


class Programs:
    """Compiles and runs on two cores, in the background and in the order of the requests."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(2)
        # What has to stand before a program's name; or why programs of this flavour do not run here.
        self.launchers: dict[str, Future[list[str] | str]] = {
            flavor: self.pool.submit(self._probe, flavor) for flavor in FLAVORS
        }
        self.objects: dict[tuple[str, Unit], Future[Path | None]] = {}
        self.binaries: dict[tuple[str, Program], Future[Path | None]] = {}

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    # A task waits only for tasks that were submitted before it: on any number of cores it comes to an end.

    def prepare(self, flavors: Iterable[str], *programs: Program) -> None:
        for flavor in flavors:
            for program in programs:
                for unit in program.units:
                    if (flavor, unit) not in self.objects:
                        self.objects[flavor, unit] = self.pool.submit(self._compile, flavor, unit)
                if (flavor, program) not in self.binaries:
                    self.binaries[flavor, program] = self.pool.submit(self._link, flavor, program)

    def start(
        self, flavor: str, program: Program, *arguments: str, **environment: str
    ) -> Future[subprocess.CompletedProcess[str] | str]:
        """A run, or why there is none."""
        self.prepare([flavor], program)
        return self.pool.submit(self._run, flavor, program, arguments, environment)

    def run(
        self, flavor: str, program: Program, *arguments: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return result_of(flavor, self.start(flavor, program, *arguments, **environment))

    def _compile(self, flavor: str, unit: Unit) -> Path | None:
        if isinstance(self.launchers[flavor].result(), str):
            return None
        target = BUILD / flavor / unit.optimization[1:] / unit.source.relative_to(ROOT).with_suffix(".o")
        return compile_source(unit.source, target, self._flags(flavor, unit))

    def _link(self, flavor: str, program: Program) -> Path | None:
        objects = [self.objects[flavor, unit].result() for unit in program.units]
        built = [path for path in objects if path is not None]
        if len(built) != len(objects):
            return None
        return link(built, BUILD / flavor / program.name, [*FLAVORS[flavor], "-pthread"])

    def _run(
        self, flavor: str, program: Program, arguments: tuple[str, ...], environment: dict[str, str]
    ) -> subprocess.CompletedProcess[str] | str:
        launcher = self.launchers[flavor].result()
        if isinstance(launcher, str):
            return launcher
        return execute([*launcher, str(self.binaries[flavor, program].result()), *arguments], **environment)

    def _flags(self, flavor: str, unit: Unit) -> list[str]:
        return ["-std=c++20", unit.optimization, *FLAVORS[flavor], f"-I{EMULATION}", f"-I{unit.include}"]

    def _probe(self, flavor: str) -> list[str] | str:
        unavailable = emulation_unavailable()
        if unavailable is not None:
            return unavailable
        folder = BUILD / flavor
        empty = folder / "empty.cpp"
        write_if_changed(empty, "int main() {}\n")
        try:
            compiled = compile_source(empty, folder / "empty.o", FLAVORS[flavor])
            binary = link([compiled], folder / "empty", FLAVORS[flavor])
        except RuntimeError as error:
            return f"an empty program does not compile: {str(error).strip()[-300:]}"
        launchers = [NO_RANDOM_ADDRESSES, []] if flavor == "thread" else [[]]
        for launcher in launchers:
            if launcher and shutil.which(launcher[0]) is None:
                continue
            result = execute([*launcher, str(binary)])
            if result.returncode == 0:
                return launcher
        return f"an empty program does not run: {result.stderr.strip()[-300:]}"


def result_of(flavor: str, run: Future[subprocess.CompletedProcess[str] | str]) -> subprocess.CompletedProcess[str]:
    """Skips the test where programs of this flavour do not run."""
    result = run.result()
    if isinstance(result, str):
        pytest.skip(f"CUDA emulation, {flavor}: SKIPPED, {result}")
    return result
