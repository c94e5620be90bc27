"""Mistakes planted in copies of the CUDA kernels, each found by the detector that should find it.

The detectors: a wrong result in some order of execution; a refusal of the emulation; the sanitizers.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import pytest
from sanitized_kernels import Edit, faulty_program, kernels_program
from sanitized_programs import Programs, result_of

pytestmark = pytest.mark.slow

RACE = "WARNING: ThreadSanitizer: data race"
OVERFLOW = "AddressSanitizer: heap-buffer-overflow"
BACKWARD_LOOP = """
    const Place place = place_of(position, params.inner_size);
    const int64_t index = target_class(params, position);
    if (index < 0) continue;"""


@dataclass(frozen=True)
class Fault:
    edits: tuple[Edit, ...]
    compiled: str  # the file of csrc/cuda in which it shows
    section: str  # of kernels.cpp
    found: tuple[tuple[str, str, str], ...]  # flavour, order, report


def edit(file: str, before: str, after: str) -> tuple[Edit, ...]:
    return (Edit(f"cuda/{file}", before, after),)


def in_cross_entropy(edits: tuple[Edit, ...], *found: tuple[str, str, str]) -> Fault:
    return Fault(edits, "cross_entropy_float32.cu", "cross_entropy", found)


FAULTS = {
    # Barriers and lanes
    "merged_parts_are_read_too_early": in_cross_entropy(
        edit(
            "cross_entropy_row.cuh",
            "own.mass_times_x;\n    }\n    __syncthreads();",
            "own.mass_times_x;\n    }",
        ),
        ("plain", "ascending", "nan, not"),
        ("thread", "ascending", RACE),
    ),
    "merged_parts_are_written_too_early": in_cross_entropy(
        edit("cross_entropy_row.cuh", "__syncthreads();  // the next row writes `parts`", ""),
        ("plain", "ascending", ", not"),
        ("thread", "ascending", RACE),
    ),
    "block_sums_are_read_too_early": in_cross_entropy(
        edit("reduce.h", "= value;\n  __syncthreads();\n  double total", "= value;\n  double total"),
        ("plain", "ascending", "nan, not"),
        ("thread", "ascending", RACE),
    ),
    "sum_of_half_the_lanes": in_cross_entropy(
        edit(
            "reduce.h",
            "distance = kThreads / 2; distance > 0; distance /= 2) {\n    value +=",
            "distance = kThreads / 4; distance > 0; distance /= 2) {\n    value +=",
        ),
        ("plain", "ascending", "sum of block losses[0] is"),
    ),
    "mask_of_half_a_warp": in_cross_entropy(
        edit("reduce.h", "kWholeWarp = 0xffffffff", "kWholeWarp = 0x0000ffff"),
        ("plain", "ascending", "is not in its own mask"),
    ),
    "rows_leave_the_loop_before_the_others": in_cross_entropy(
        edit(
            "cross_entropy_swept_rows.cuh",
            "    const SweptRow<T, kDense> row(params, position, exists);",
            "    if (!exists) return;\n    const SweptRow<T, kDense> row(params, position, exists);",
        ),
        ("plain", "ascending", "kernel misuse"),
    ),
    "rows_belong_to_two_blocks": in_cross_entropy(
        edit(
            "cross_entropy_row.cuh",
            "first += int64_t(gridDim.x) * kRowsPerBlock",
            "first += kRowsPerBlock",
        ),
        ("plain", "ascending", "gradient[32] is"),  # that over the logits, which takes them for logits again
        ("thread", "ascending", RACE),
    ),
    "gradients_of_two_blocks": Fault(  # which write the same numbers
        edit(
            "nll_loss.cu",
            "position += int64_t(gridDim.x) * kBlockThreads) {" + BACKWARD_LOOP,
            "position += kBlockThreads) {" + BACKWARD_LOOP,
        ),
        "nll_loss.cu",
        "nll_loss",
        (("thread", "ascending", RACE),),
    ),
    # Tails and alignment
    "packet_load_past_the_row": in_cross_entropy(
        edit(
            "packet_window.cuh",
            "return first >= 0 && first + kElements <= count_;",
            "return first >= 0 && first + kElements <= count_ + 1;",
        ),
        ("address", "ascending", OVERFLOW),
    ),
    "packet_load_before_the_row": in_cross_entropy(
        edit(
            "packet_window.cuh",
            "return first >= 0 && first + kElements <= count_;",
            "return first + kElements <= count_;",
        ),
        ("plain", "ascending", "sum of block losses[0] is"),
    ),
    "elements_outside_the_row_are_read": in_cross_entropy(  # and dropped
        edit(
            "packet_window.cuh",
            "if (holds(first + k)) result.elements[k] = address[k];",
            "const T element = address[k];\n      if (holds(first + k)) result.elements[k] = element;",
        ),
        ("address", "ascending", OVERFLOW),
    ),
    "packet_store_past_the_row": in_cross_entropy(
        edit(
            "packet_window.cuh",
            "first + kElements <= count_ && elements",
            "first + kElements <= count_ + 1 && elements",
        ),
        ("address", "ascending", OVERFLOW),
    ),
    "packet_store_without_alignment": in_cross_entropy(
        edit("packet_window.cuh", " && elements_past_alignment(row) == head_", ""),
        ("plain", "ascending", "misaligned address at element.h"),
    ),
    "packets_of_an_unaligned_row_are_not_counted": in_cross_entropy(
        edit("packet_window.cuh", "(count + 2 * (kPacketElements<T> - 1))", "(count + kPacketElements<T> - 1)"),
        ("plain", "ascending", "sum of block losses[0] is"),
    ),
    "kept_packet_past_shared_memory": in_cross_entropy(
        edit("cross_entropy_swept_rows.cuh", "kKeeps && packet < count_", "kKeeps && packet <= count_"),
        ("plain", "ascending", "wrote outside the dynamic shared array"),
        ("address", "ascending", "AddressSanitizer: use-after-poison"),
    ),
    "inner_packet_past_the_end": in_cross_entropy(
        edit(
            "cross_entropy_inner.cuh",
            "if (count >= kPositions) {\n        const Packet",
            "if (count > 0) {\n        const Packet",
        ),
        ("address", "ascending", OVERFLOW),
    ),
    "inner_packets_of_unaligned_classes": in_cross_entropy(
        edit("cross_entropy_inner.cuh", "layout.class_stride % kElements == 0 &&", "layout.class_stride > 0 &&"),
        ("plain", "ascending", "misaligned address at element.h"),
    ),
    "inner_packets_of_unaligned_outer_axes": in_cross_entropy(
        edit("cross_entropy_inner.cuh", "layout.outer_stride % kElements == 0;", "layout.outer_stride > 0;"),
        ("plain", "ascending", "misaligned address at element.h"),
    ),
    "inner_packets_at_any_address": in_cross_entropy(
        edit("cross_entropy_inner.cuh", "reinterpret_cast<uintptr_t>(data) % kPacketBytes == 0", "data != nullptr"),
        ("address", "ascending", "runtime error: reference binding to misaligned address"),
    ),
    "elementwise_tail_past_the_end": Fault(
        edit("elementwise_loss.cuh", "rest < kCount ? static_cast<int>(rest) : kCount", "kCount"),
        "binary_cross_entropy.cu",
        "binary_cross_entropy",
        (("address", "ascending", OVERFLOW),),
    ),
    "elementwise_packets_at_any_address": Fault(
        edit(
            "elementwise_loss.cuh",
            "load_elements(inputs + first, count, is_aligned(inputs), x)",
            "load_elements(inputs + first, count, true, x)",
        ),
        "binary_cross_entropy.cu",
        "binary_cross_entropy",
        (("plain", "ascending", "misaligned address"),),
    ),
    "broadcast_axis_does_not_wrap": Fault(
        edit("elementwise_loss.cuh", "        offset -= coordinates[dim] * operand.strides[dim];\n", ""),
        "binary_cross_entropy.cu",
        "binary_cross_entropy",
        (("address", "ascending", OVERFLOW),),
    ),
    "pos_weight_alone_is_forgotten": Fault(
        edit(
            "elementwise_loss.cuh",
            "params.weight.data != nullptr || params.pos_weight.data != nullptr;",
            "params.weight.data != nullptr;",
        ),
        "binary_cross_entropy_with_logits.cu",
        "binary_cross_entropy",
        (("plain", "ascending", "sum of block losses[0] is"),),
    ),
    "scaled_packet_past_the_end": Fault(
        edit("reductions.cu", "first + kElements <= scale.num_elements", "first < scale.num_elements"),
        "reductions.cu",
        "reductions",
        (("address", "ascending", OVERFLOW),),
    ),
    # Targets
    "class_of_the_next_row": Fault(
        edit("cross_entropy_row.cuh", "index >= 0 && index < params.num_classes", "index >= 0"),
        "cross_entropy_float32.cu",
        "refusals",
        (("address", "ascending", OVERFLOW),),
    ),
}
RUNS = [(name, *found) for name, fault in FAULTS.items() for found in fault.found]
CORRECT = ("no_fault", "plain", "ascending")  # with sanitizers: test_kernels_under_sanitizers.py


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[tuple[str, str, str], Future]]:
    """All at once, in the background."""
    programs = Programs()
    correct = {"plain": kernels_program("-O0"), "address": kernels_program(), "thread": kernels_program()}
    started = {CORRECT: programs.start("plain", correct["plain"], "ascending", "0", "all", "float32")}
    for name, flavor, order, _ in RUNS:
        fault = FAULTS[name]
        try:
            program = faulty_program(name, correct[flavor], fault.compiled, fault.edits)
        except AssertionError as error:  # the kernels have changed: this fault's own test shall say so
            started[name, flavor, order] = Future()
            started[name, flavor, order].set_exception(error)
            continue
        # One race is enough.
        started[name, flavor, order] = programs.start(
            flavor, program, order, "0", fault.section, "float32", TSAN_OPTIONS="halt_on_error=1"
        )
    yield started
    programs.close()


def test_without_a_fault_nothing_is_found(runs) -> None:
    result = result_of("plain", runs[CORRECT])
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(("name", "flavor", "order", "report"), RUNS)
def test_planted_faults_are_found(runs, name: str, flavor: str, order: str, report: str) -> None:
    result = result_of(flavor, runs[name, flavor, order])
    assert report in result.stdout + result.stderr
    assert result.returncode != 0
