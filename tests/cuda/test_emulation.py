"""The CUDA emulation itself: it does what CUDA does, and each planted fault is found by the detector that should."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from compilation import EMULATION
from sanitized_programs import FLAVORS, ORDERS, Program, Programs, Unit

pytestmark = pytest.mark.slow  # half a minute of two cores to compile

SANITIZED = ["plain", "address", "thread"]
SEMANTICS = Program("semantics", (Unit(EMULATION / "semantics.cpp"),))
PLANTED_FAULTS = Program("planted_faults", (Unit(EMULATION / "planted_faults.cpp"),))


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    programs = Programs()
    programs.prepare(FLAVORS, SEMANTICS)
    programs.prepare(SANITIZED, PLANTED_FAULTS)
    yield programs
    programs.close()


@pytest.mark.parametrize("flavor", FLAVORS)
def test_it_does_what_cuda_does(programs: Programs, flavor: str) -> None:
    result = programs.run(flavor, SEMANTICS)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("seed", ["0", "1"])
@pytest.mark.parametrize("flavor", SANITIZED)
def test_correct_kernels_pass_in_every_order(programs: Programs, flavor: str, seed: str) -> None:
    for order in ORDERS:
        result = programs.run(flavor, PLANTED_FAULTS, "all_correct", order, seed)
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
def test_orders_give_hazards_away(programs: Programs, fault: str, orders_that_find_it: list[str]) -> None:
    for order in orders_that_find_it:
        assert programs.run("plain", PLANTED_FAULTS, fault, order, "1").stdout == f"{order} {fault}: wrong\n"


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
def test_thread_sanitizer_reports_hazards(programs: Programs, fault: str, order: str) -> None:
    result = programs.run("thread", PLANTED_FAULTS, fault, order)
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
def test_address_and_undefined_behavior_sanitizers_report_accesses(programs: Programs, fault: str, report: str) -> None:
    for order in ORDERS:
        result = programs.run("address", PLANTED_FAULTS, fault, order)
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
    "cache_hint_for_shared_memory": "a cache hint for shared memory at planted_faults.cpp:",
}


@pytest.mark.parametrize("flavor", SANITIZED)
@pytest.mark.parametrize("fault", MISUSE)
def test_misuse_is_refused_and_the_next_launch_works(programs: Programs, fault: str, flavor: str) -> None:
    for order in ORDERS[:1] if flavor == "thread" else ORDERS:  # it takes seconds to prepare its fibers anew
        result = programs.run(flavor, PLANTED_FAULTS, fault, order)
        assert (result.returncode, result.stderr) == (0, "")
        (outcome,) = result.stdout.splitlines()
        assert outcome.startswith(f"{order} {fault}: refused: kernel misuse: block ")
        assert MISUSE[fault] in outcome


def test_overrun_of_shared_memory_is_refused_without_a_sanitizer(programs: Programs) -> None:
    for outcome in programs.run("plain", PLANTED_FAULTS, "shared_overrun").stdout.splitlines():
        assert "wrote outside the shared array of planted_faults.cpp:" in outcome


@pytest.mark.parametrize("flavor", SANITIZED)
def test_device_assertion_ends_the_launch_in_cudas_words(programs: Programs, flavor: str) -> None:
    message = "refused: CUDA error: device-side assert triggered: target < num_classes"
    result = programs.run(flavor, PLANTED_FAULTS, "device_assert")
    assert result.stdout.splitlines() == [f"{order} device_assert: {message}" for order in ORDERS]
    assert result.stderr == ""


def test_environment_chooses_the_order(programs: Programs) -> None:
    """Seen by the block in which the first fault is found."""

    def outcome(**environment: str) -> str:
        return programs.run("plain", PLANTED_FAULTS, "shared_limit", "environment", **environment).stdout

    assert "block 0, thread 0:" in outcome()
    assert "block 2, thread 127:" in outcome(FUSED_LOSSES_EMULATION_ORDER="descending")
    random = {outcome(FUSED_LOSSES_EMULATION_ORDER="random", FUSED_LOSSES_EMULATION_SEED=str(seed)) for seed in (1, 2)}
    assert len(random) == 2
    assert "an emulation order is" in outcome(FUSED_LOSSES_EMULATION_ORDER="sideways")
