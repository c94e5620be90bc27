"""The README's tables, rendered from a JSON, so that no figure there was typed by hand."""

from benchmarks.formats import ABSENT, milliseconds, peak_megabytes, ratio
from benchmarks.results import (
    PASS_TITLES,
    PASSES,
    CaseResult,
    Pass,
    Report,
    contenders_present,
    fused_speedup,
    median_seconds,
    times_floor,
)

SETTING_COLUMNS = ("loss", "logits", "dtype", "variant", "allocator", "threads")
RATIO_COLUMNS = ("faster than eager", "faster than compile", "fused / floor")


def write_markdown(results: Report) -> str:
    """Markdown: what was measured on, then one table for each pass."""
    contenders = contenders_present(results)
    figures = [*(f"{name}, ms" for name in contenders), *RATIO_COLUMNS, *(f"{name}, peak MB" for name in contenders)]
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
    device = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    shrunk = " Shrunk cells (`--quick`): these figures mean nothing." if results["quick"] else ""
    commit = f"`{machine['commit'][:12]}`" if machine["commit"] else "an unknown commit"
    changes = " with uncommitted changes" if machine["uncommitted_changes"] else ""
    return (
        f"{device}; torch {machine['torch']}, fused_losses at {commit}{changes} using "
        f"{machine['fused_losses_cpu_capability']}; {machine['date'][:10]}; `{' '.join(results['command'])}`. "
        "Medians. Floor: a warm read (forward) or copy (forward + backward) of the same bytes. "
        f"Peak: memory allocated beyond the inputs, with the gradient.{shrunk}"
    )


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
    ]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
