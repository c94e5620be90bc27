"""The tables of docs/results.md, rendered from a JSON, so that no figure there was typed by hand."""

from typing import Any

from benchmarks.formats import ABSENT, gigabytes, milliseconds, peak_megabytes, ratio
from benchmarks.results import (
    PASS_TITLES,
    PASSES,
    CaseResult,
    Pass,
    Report,
    contenders_present,
    fused_speedup,
    gigabytes_per_second,
    median_seconds,
    times_floor,
)

SETTING_COLUMNS = ("loss", "logits", "dtype", "variant", "allocator", "threads")
RATIO_COLUMNS = ("faster than eager", "faster than compile", "fused / floor")
CPU_FLOOR = "a warm read (forward) or copy (forward + backward) of the same bytes."
GPU_FLOOR = (
    "a device copy that moves the bytes that the loss must move: logits and target read, gradient written. "
    "GB/s counts those bytes, whatever a contender moves."
)


def write_markdown(results: Report) -> str:
    """Markdown: what was measured on, then one table for each pass."""
    contenders = contenders_present(results)
    figures = [*(f"{name}, ms" for name in contenders), *RATIO_COLUMNS, *(f"{name}, peak MB" for name in contenders)]
    if results["machine"]["gpu"]:
        figures += [f"{name}, GB/s" for name in (*contenders, "copy")]
    header = (
        _row([*SETTING_COLUMNS, *figures]) + "\n" + _row([":--" for _ in SETTING_COLUMNS] + ["--:" for _ in figures])
    )
    paragraphs = [_provenance(results)]
    for which in PASSES:
        rows = [_row(_cells(result, which, contenders)) for result in results["results"]]
        paragraphs += [f"**{PASS_TITLES[which].capitalize()}**", "\n".join([header, *rows])]
    return "\n\n".join(paragraphs) + "\n"


def _provenance(results: Report) -> str:
    machine = results["machine"]
    if machine["gpu"]:
        device, kernels, floor = _gpu(machine), "its CUDA kernels", GPU_FLOOR
    else:
        device, kernels, floor = (
            f"{machine['cpu']}, {machine['cores']} cores",
            machine["fused_losses_cpu_capability"],
            CPU_FLOOR,
        )
    shrunk = " Shrunk cells (`--quick`): these figures mean nothing." if results["quick"] else ""
    commit = f"`{machine['commit'][:12]}`" if machine["commit"] else "an unknown commit"
    changes = " with uncommitted changes" if machine["uncommitted_changes"] else ""
    return (
        f"{device}; torch {machine['torch']}, fused_losses at {commit}{changes} using "
        f"{kernels}; {machine['date'][:10]}; `{' '.join(results['command'])}`. "
        f"Medians. Floor: {floor} "
        f"Peak: memory allocated beyond the inputs, with the gradient.{shrunk}"
    )


def _gpu(machine: dict[str, Any]) -> str:
    details = machine["gpu_details"]
    clocks = f"SM {details['clocks.max.sm']}, memory {details['clocks.max.memory']}"
    return f"{machine['gpu']}, driver {details['driver_version']}, CUDA {details['cuda']}, largest clocks {clocks}"


def _cells(result: CaseResult, which: Pass, contenders: list[str]) -> list[str]:
    return [
        result["loss"],
        " x ".join(map(str, result["shape"])),
        result["dtype"],
        result["variant"].replace("-", ", ") or ABSENT,
        result["allocator"],
        str(result["threads"]),
        *(milliseconds(median_seconds(result, name, which)) for name in contenders),
        ratio(fused_speedup(result, which, "eager")),
        ratio(fused_speedup(result, which, "compile")),
        ratio(times_floor(result, "fused", which)),
        *(peak_megabytes(result, name, which) for name in contenders),
        *(_speeds(result, which, contenders) if result["device"] == "cuda" else []),
    ]


def _speeds(result: CaseResult, which: Pass, contenders: list[str]) -> list[str]:
    return [gigabytes(gigabytes_per_second(result, name, which)) for name in (*contenders, "floor")]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
