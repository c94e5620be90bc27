"""The CUDA emulation itself: it does what CUDA does, and each planted fault is found by the detector that should."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent / "emulation"
COMPILER = shlex.split(os.environ.get("CXX", "g++"))
ORDERS = ["ascending", "descending", "random", "warps"]
FLAVORS = {
    "plain": ["-O1"],
    "ucontext": ["-O1", "-DFUSED_LOSSES_EMULATION_UCONTEXT"],  # how it switches where no assembly is written
    "address": ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-fsanitize=thread"],
}
SANITIZED = ["plain", "address", "thread"]
# Some kernels map memory, in some runs, where ThreadSanitizer needs it. Some containers forbid this command.
NO_RANDOM_ADDRESSES = ["setarch", "-R"]


def execute(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    foreign = ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS")
    clean = {k: v for k, v in os.environ.items() if k not in foreign and not k.startswith("FUSED_LOSSES_EMULATION_")}
    return subprocess.run(
        command, capture_output=True, text=True, env={**clean, **environment}, timeout=600, check=False
    )


class Builder:
    """Compiles on two cores in the background what the tests wait for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "empty.cpp").write_text("int main() {}\n")
        pool = ThreadPoolExecutor(2)
        self.launchers = {flavor: pool.submit(self.probe, flavor) for flavor in FLAVORS}
        self.binaries: dict[tuple[str, str], Future[str]] = {
            (flavor, program): pool.submit(self.build, flavor, program)
            for flavor in FLAVORS
            for program in ("semantics", "planted_faults")
            if flavor != "ucontext" or program == "semantics"
        }
        pool.shutdown(wait=False)

    def compile(self, flavor: str, source: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
        binary = self.folder / f"{source.stem}_{flavor}"
        command = [*COMPILER, "-std=c++20", *FLAVORS[flavor], f"-I{SOURCES}"]
        return binary, execute([*command, str(source), "-o", str(binary), "-pthread"])

    def probe(self, flavor: str) -> list[str] | str:
        """What has to stand before a program's name; or why programs of this flavour do not run here."""
        if sys.platform != "linux":
            return "it switches stacks as Linux allows"
        if shutil.which(COMPILER[0]) is None:
            return f"there is no compiler {COMPILER[0]}"
        binary, compilation = self.compile(flavor, self.folder / "empty.cpp")
        if compilation.returncode != 0:
            return f"an empty program does not compile: {compilation.stderr.strip()[-300:]}"
        launchers = [NO_RANDOM_ADDRESSES, []] if flavor == "thread" else [[]]
        for launcher in launchers:
            if launcher and shutil.which(launcher[0]) is None:
                continue
            result = execute([*launcher, str(binary)])
            if result.returncode == 0:
                return launcher
        return f"an empty program does not run: {result.stderr.strip()[-300:]}"

    def build(self, flavor: str, program: str) -> str:
        if isinstance(self.launchers[flavor].result(), str):
            return ""
        binary, compilation = self.compile(flavor, SOURCES / f"{program}.cpp")
        assert compilation.returncode == 0, compilation.stderr
        return str(binary)

    def run(self, flavor: str, program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        launcher = self.launchers[flavor].result()
        if isinstance(launcher, str):
            pytest.skip(f"CUDA emulation, {flavor}: SKIPPED, {launcher}")
        return execute([*launcher, self.binaries[flavor, program].result(), *arguments], **environment)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(tmp_path_factory.mktemp("emulation"))


@pytest.mark.parametrize("flavor", FLAVORS)
def test_it_does_what_cuda_does(programs: Builder, flavor: str) -> None:
    result = programs.run(flavor, "semantics")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("seed", ["0", "1"])
@pytest.mark.parametrize("flavor", SANITIZED)
def test_correct_kernels_pass_in_every_order(programs: Builder, flavor: str, seed: str) -> None:
    for order in ORDERS:
        result = programs.run(flavor, "planted_faults", "all_correct", order, seed)
        assert (result.returncode, result.stderr) == (0, "")
        outcomes = result.stdout.splitlines()
        assert len(outcomes) > 15
        assert [line for line in outcomes if not line.endswith(": right")] == []


@pytest.mark.parametrize(
    ("fault", "orders_that_find_it"),
    [
        ("read_after_write", ORDERS),
        # Random threads drift too little to write before the last one has read.
        ("write_after_read", ["ascending", "descending", "warps"]),
        ("missing_syncwarp", ORDERS),
        ("race_of_blocks", ORDERS),
        ("uninitialized_shared", ORDERS),
    ],
)
def test_orders_give_hazards_away(programs: Builder, fault: str, orders_that_find_it: list[str]) -> None:
    for order in orders_that_find_it:
        assert programs.run("plain", "planted_faults", fault, order, "1").stdout == f"{order} {fault}: wrong\n"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "fault",
    [
        "read_after_write",
        "write_after_read",
        "missing_syncwarp",
        "shuffle_as_fence",  # no order shows it: the emulated lanes do meet at the shuffle
        "race_of_blocks",
    ],
)
def test_thread_sanitizer_reports_hazards(programs: Builder, fault: str, order: str) -> None:
    result = programs.run("thread", "planted_faults", fault, order)
    assert "WARNING: ThreadSanitizer: data race" in result.stderr
    assert result.returncode != 0


@pytest.mark.parametrize(
    ("fault", "report"),
    [
        ("global_overrun", "AddressSanitizer: heap-buffer-overflow"),
        ("shared_overrun", "AddressSanitizer: use-after-poison"),
        ("misaligned_access", "runtime error: reference binding to misaligned address"),
    ],
)
def test_address_and_undefined_behavior_sanitizers_report_accesses(programs: Builder, fault: str, report: str) -> None:
    for order in ORDERS:
        result = programs.run("address", "planted_faults", fault, order)
        assert report in result.stderr
        assert result.returncode != 0


MISUSE = {
    "divergent_barrier": "divergent barrier: __syncthreads at",
    "skipped_barrier": "deadlock: waits forever in __syncthreads at",
    "lane_outside_mask": "lane 31 is not in its own mask",
    "exited_lane": "the mask names lanes that do not exist or have exited",
    "absent_lane": "deadlock: waits forever in __shfl_xor_sync with mask 0xffffffff at",
    "tail_mask": "the mask names lanes that do not exist or have exited: 0xffff0000",
    "shared_size": "4 bytes, but 512 for a thread before",
    "shared_limit": "more than 48 KiB of shared memory",
    "misaligned_load": "misaligned address at planted_faults.cpp:",
}


@pytest.mark.parametrize("flavor", SANITIZED)
@pytest.mark.parametrize("fault", MISUSE)
def test_misuse_is_refused_and_the_next_launch_works(programs: Builder, fault: str, flavor: str) -> None:
    for order in ORDERS[:1] if flavor == "thread" else ORDERS:  # it takes seconds to prepare its fibers anew
        result = programs.run(flavor, "planted_faults", fault, order)
        assert (result.returncode, result.stderr) == (0, "")
        (outcome,) = result.stdout.splitlines()
        assert outcome.startswith(f"{order} {fault}: refused: kernel misuse: block ")
        assert MISUSE[fault] in outcome


def test_overrun_of_shared_memory_is_refused_without_a_sanitizer(programs: Builder) -> None:
    for outcome in programs.run("plain", "planted_faults", "shared_overrun").stdout.splitlines():
        assert "wrote outside the shared array of planted_faults.cpp:" in outcome


@pytest.mark.parametrize("flavor", SANITIZED)
def test_device_assertion_ends_the_launch_in_cudas_words(programs: Builder, flavor: str) -> None:
    message = "refused: CUDA error: device-side assert triggered: target < num_classes"
    result = programs.run(flavor, "planted_faults", "device_assert")
    assert result.stdout.splitlines() == [f"{order} device_assert: {message}" for order in ORDERS]
    assert result.stderr == ""


def test_environment_chooses_the_order(programs: Builder) -> None:
    """Seen by the block in which the first fault is found."""

    def outcome(**environment: str) -> str:
        return programs.run("plain", "planted_faults", "shared_limit", "environment", **environment).stdout

    assert "block 0, thread 0:" in outcome()
    assert "block 2, thread 127:" in outcome(FUSED_LOSSES_EMULATION_ORDER="descending")
    random = {outcome(FUSED_LOSSES_EMULATION_ORDER="random", FUSED_LOSSES_EMULATION_SEED=str(seed)) for seed in (1, 2)}
    assert len(random) == 2
    assert "an emulation order is" in outcome(FUSED_LOSSES_EMULATION_ORDER="sideways")
