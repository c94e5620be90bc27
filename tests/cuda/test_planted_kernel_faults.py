"""Mistakes planted in copies of the CUDA kernels, each found by the detector that should find it.

The detectors: a wrong result in some order of execution; a refusal of the emulation; the sanitizers.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import pytest
from sanitized_kernels import SANITIZED_DTYPES, Edit, faulty_program, kernels_program
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


def in_terms(edits: tuple[Edit, ...], *found: tuple[str, str, str]) -> Fault:
    return Fault(edits, "cross_entropy_with_terms_float32.cu", "cross_entropy_terms", found)


def in_token_statistics(edits: tuple[Edit, ...], *found: tuple[str, str, str]) -> Fault:
    return Fault(edits, "token_statistics.cu", "token_statistics", found)


FAULTS = {
    # Barriers and lanes
    "sums_of_warps_are_read_too_early": in_cross_entropy(
        edit("reduce.h", "= values[i];\n    }\n    __syncthreads();", "= values[i];\n    }"),
        ("plain", "ascending", "nan, not"),
        ("thread", "ascending", RACE),
    ),
    "maxima_of_warps_are_read_too_early": in_cross_entropy(
        edit(
            "reduce.h",
            "warp_maxima[thread / kWarpThreads] = value;\n    __syncthreads();",
            "warp_maxima[thread / kWarpThreads] = value;",
        ),
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
            "exists);\n    const bool with_mass",
            "exists);\n    if (!exists) return;\n    const bool with_mass",
        ),
        ("plain", "ascending", "kernel misuse"),
    ),
    "rows_belong_to_two_blocks": in_cross_entropy(
        edit(
            "rows.h",
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
    "packet_past_the_row": in_cross_entropy(
        edit(
            "packet_window.cuh",
            "packets_ = (count - head_) / kElements;",
            "packets_ = (count - head_) / kElements + 1;",
        ),
        ("address", "ascending", OVERFLOW),
    ),
    "packets_begin_at_the_row": in_cross_entropy(
        edit("packet_window.cuh", "head_ = count < before ? static_cast<int>(count) : before;", "head_ = 0;"),
        ("plain", "ascending", "misaligned address at packet.h"),
    ),
    "edge_past_the_row": in_cross_entropy(
        edit(
            "packet_window.cuh",
            "static_cast<int>(count - packets_ * kElements)",
            "static_cast<int>(count - packets_ * kElements) + 1",
        ),
        ("address", "ascending", OVERFLOW),
    ),
    "edges_behind_the_packets_are_read_before_them": in_cross_entropy(
        edit("packet_window.cuh", "edge < head_ ? edge : edge + packets_ * kElements", "edge"),
        ("plain", "ascending", "sum of block losses[0] is"),
    ),
    "packet_store_without_alignment": in_cross_entropy(
        edit("packet_window.cuh", "if (packed) return", "return"),
        ("plain", "ascending", "misaligned address at packet.h"),
    ),
    "a_target_stays_in_the_sum": in_cross_entropy(
        edit("cross_entropy_register_rows.cuh", "packets[slot].replace(spot.element, -kInfinity<A>);", ""),
        ("plain", "ascending", ", not"),
    ),
    "packets_that_not_every_row_has": in_cross_entropy(
        edit("cross_entropy_register_rows.cuh", "kPackets == 8 ? 4 : kPackets / 4;", "kPackets;"),
        ("plain", "ascending", "sum of block losses[0] is"),  # of the next rows
    ),
    "rounds_of_packets_past_the_row": in_cross_entropy(
        edit(
            "cross_entropy_swept_rows.cuh",
            "packet + (kInFlight - 1) * kThreads < num_packets_; packet +=",
            "packet < num_packets_; packet +=",
        ),
        ("address", "ascending", OVERFLOW),
    ),
    "every_thread_writes_the_target": in_cross_entropy(
        edit("cross_entropy_swept_rows.cuh", "packet >= 0 && packet % kThreads == thread", "packet >= 0"),
        ("thread", "ascending", RACE),
    ),
    "packets_left_over_are_not_added": in_cross_entropy(
        edit(
            "cross_entropy_swept_rows.cuh",
            "if (first < num_packets_) add_packets",
            "if (first < 0) add_packets",
        ),
        ("plain", "ascending", "sum of block losses[0] is"),
    ),
    "target_of_a_staged_row_is_forgotten": in_cross_entropy(
        edit("cross_entropy_few_classes.cuh", "if (kRows && target_class >= 0) tile", "if (target_class > 99) tile"),
        ("plain", "ascending", "gradient["),
    ),
    "staged_rows_are_read_too_early": in_cross_entropy(
        edit("cross_entropy_few_classes.cuh", "tile_elements);\n      __syncthreads();", "tile_elements);"),
        ("plain", "ascending", ", not"),
        ("thread", "ascending", RACE),
    ),
    "staged_rows_are_written_too_early": in_cross_entropy(
        edit("cross_entropy_few_classes.cuh", "        __syncthreads();  // the next rows are written there\n", ""),
        ("plain", "ascending", ", not"),
        ("thread", "ascending", RACE),
    ),
    "staged_rows_are_as_aligned_as_shared_memory": in_cross_entropy(
        edit("cross_entropy_few_classes.cuh", "if (!window.is_packed(to)) {", "if (count < 0) {"),
        ("plain", "ascending", "misaligned address at packet.h"),
    ),
    "cache_hint_for_a_staged_row": in_cross_entropy(
        edit("cross_entropy_few_classes.cuh", "Reuse::Never, tile, Reuse::Soon", "Reuse::Never, tile, Reuse::Never"),
        ("plain", "ascending", "a cache hint for shared memory at packet.h"),
    ),
    "kept_packet_past_shared_memory": in_cross_entropy(
        edit("cross_entropy_swept_rows.cuh", "kKeeps && packet < count_", "kKeeps && packet <= count_"),
        ("plain", "ascending", "wrote outside the dynamic shared array"),
        ("address", "ascending", "AddressSanitizer: use-after-poison"),
    ),
    "inner_chunk_past_the_end": in_cross_entropy(
        edit(
            "cross_entropy_inner.cuh",
            "if (count >= kPositions) {\n      result.chunk_",
            "if (count > 0) {\n      result.chunk_",
        ),
        ("address", "ascending", OVERFLOW),
    ),
    "inner_chunks_of_unaligned_classes": in_cross_entropy(
        edit("cross_entropy_inner.cuh", "layout.class_stride % kElements == 0 &&", "layout.class_stride > 0 &&"),
        ("plain", "ascending", "misaligned address at packet.h"),
    ),
    "inner_chunks_of_unaligned_outer_axes": in_cross_entropy(
        edit("cross_entropy_inner.cuh", "layout.outer_stride % kElements == 0;", "layout.outer_stride > 0;"),
        ("plain", "ascending", "misaligned address at packet.h"),
    ),
    "inner_chunks_at_any_address": in_cross_entropy(
        edit(
            "cross_entropy_inner.cuh",
            "reinterpret_cast<uintptr_t>(data) % (kElements * sizeof(T)) == 0",
            "data != nullptr",
        ),
        ("address", "ascending", "runtime error: reference binding to misaligned address"),
    ),
    "elementwise_tail_past_the_end": Fault(
        edit("elementwise_loss.cuh", "rest < kCount ? static_cast<int>(rest) : kCount", "kCount"),
        "binary_cross_entropy.cu",
        "binary_cross_entropy",
        (("address", "ascending", OVERFLOW),),
    ),
    "elements_past_the_end_are_summed": Fault(
        edit("elementwise_loss.cuh", "if (count < kCount) {", "if (count < 0) {"),
        "binary_cross_entropy_with_logits.cu",
        "binary_cross_entropy",
        (("plain", "ascending", "sum of block losses[0] is"),),
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
    "focal_loss_forgets_what_is_certain": Fault(
        (
            Edit(
                "core/binary_cross_entropy_formulas.h",
                "factor * (plain.derivative + steepness * (one - y - y))",
                "factor * plain.derivative",
            ),
        ),
        "sigmoid_focal_loss.cu",
        "binary_cross_entropy",
        (("plain", "ascending", "gradient[0] is"),),
    ),
    # Terms of a row
    "focal_factor_of_the_probability": in_terms(
        edit("cross_entropy_terms.cuh", "log_of(complement(row)) * focal_gamma_", "log_of(A(1)) * focal_gamma_"),
        ("plain", "ascending", "loss[0] is"),
    ),
    "focal_derivative_of_a_constant_factor": in_terms(
        edit("cross_entropy_terms.cuh", "fma_of(slope, focal_gamma_, A(1))", "A(1)"),
        ("plain", "ascending", "gradient[0] is"),
    ),
    "z_loss_with_the_other_sign": in_terms(
        edit(
            "cross_entropy_terms.cuh", "fma_of(lse_square_scale_ + lse_square_scale_,", "fma_of(-2 * lse_square_scale_,"
        ),
        ("plain", "ascending", "gradient[0] is"),
    ),
    "log_sum_exp_without_its_maximum": in_terms(
        edit("cross_entropy_terms.cuh", "return fma_of(row.shift, factor_, row.log_sum);", "return row.log_sum;"),
        ("plain", "ascending", "loss[0] is"),
    ),
    "slope_of_a_softcap_is_missing": in_terms(
        edit("cross_entropy_terms.cuh", "derivative * ((A(1) - unit) * (A(1) + unit))", "derivative"),
        ("plain", "ascending", "gradient[0] is"),
    ),
    "keys_without_the_scales_sign": in_terms(
        edit("cross_entropy_terms.cuh", "logits.words[i] ^= flipped;", "logits.words[i] ^= 0u;"),
        ("plain", "ascending", "maximum[0] is"),
    ),
    "target_of_softcapped_logits_stays_in_the_sum": in_terms(
        edit(
            "cross_entropy_swept_rows.cuh", "k == target.element ? A(0) : value", "k == target.element ? value : value"
        ),
        ("plain", "ascending", "sum of exponentials["),
    ),
    "classes_that_are_none_count_under_a_softcap": in_terms(
        edit("cross_entropy_terms.cuh", "exists ? unit(logit) : -kInfinity<A>", "exists || true ? unit(logit) : A(0)"),
        ("plain", "ascending", "sum of exponentials["),
    ),
    "masses_of_units_are_not_those_of_x": in_terms(
        edit(
            "cross_entropy_swept_rows.cuh",
            "    statistics.mass_times_x = terms_.to_x(statistics.mass_times_x);\n",
            "",
        ),
        ("plain", "ascending", "loss[0] is"),
    ),
    "targets_are_read_while_one_is_written_over": in_terms(
        edit("cross_entropy_swept_rows.cuh", "if constexpr (Terms::kAny) wait_for_group<kThreads>();", ""),
        ("thread", "ascending", RACE),
    ),
    # Statistics of tokens
    "sum_of_z_keeps_its_old_maximum": in_token_statistics(
        edit("token_statistics.cu", "factor * (times_x + change * others)", "factor * times_x"),
        ("plain", "ascending", "entropy[0] is"),
    ),
    "largest_of_a_packet_is_the_last": in_token_statistics(
        edit("token_statistics.cu", "int k = kElements - 1; k >= 0; --k", "int k = 0; k < kElements; ++k"),
        ("plain", "ascending", "argmax[0] is"),
    ),
    "tokens_target_stays_in_the_sum": in_token_statistics(
        edit("token_statistics.cu", "k == hole ? A(0) : exponentials[k]", "exponentials[k]"),
        ("plain", "ascending", "sum of the others[0] is"),
    ),
    "largest_is_taken_for_smaller_ones_too": in_token_statistics(
        edit("token_statistics.cu", "sums.max_key == max_key ? sums.first_of_max : kNoClass", "sums.first_of_max"),
        ("plain", "ascending", "argmax[0] is"),
    ),
    "minima_of_warps_are_read_too_early": in_token_statistics(
        edit(
            "reduce.h",
            "warp_minima[thread / kWarpThreads] = value;\n    __syncthreads();",
            "warp_minima[thread / kWarpThreads] = value;",
        ),
        ("thread", "ascending", RACE),
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
    # With the sanitizers those programs that test_kernels_under_sanitizers.py has compiled or waits for.
    correct = {"plain": kernels_program(["float32"], "-O0")}
    correct |= {flavor: kernels_program(dtypes) for flavor, dtypes in SANITIZED_DTYPES.items()}
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
