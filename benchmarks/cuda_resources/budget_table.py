"""The budget as Markdown: a table for each element type, and what is above its budget."""

from collections.abc import Sequence

from benchmarks.cuda_resources.budget import SHORT_ROWS_TOLERANCE, TOLERANCE, Share
from benchmarks.cuda_resources.evidence import capability
from benchmarks.cuda_resources.issue_budget import ISSUE_SLOTS, SPECIAL_SLOTS, Device
from benchmarks.cuda_resources.kernel_work import FEW, ITEM_BYTES
from benchmarks.cuda_resources.markdown import row

INTRODUCTION = """\
## Instructions an element, and the budget

Written by `python -m benchmarks.cuda_resources --budget`. Counted in the machine code: what the warps issue for a row
(once round the loop over rows, and round the loops in it as often as its packets ask for), by the elements of the row;
threads that have nothing of the row count too. The way is the cheapest one that reads a target, adds up every
exponential and stores every packet: rows that begin aligned, index targets without class weights and smoothing, binary
losses of targets 0 and 1. Beside it the budget: what a GPU can issue while its memory moves logits, gradient and
target, {issue} thread-instructions a clock and SM. Above it the instructions decide, below it the memory may. Neither
says how fast a kernel is.

| GPU | machine code | GB/s | SMs | GHz | bytes a clock and SM | instructions a byte | MUFU a byte |
| :-- | --: | --: | --: | --: | --: | --: | --: |
{devices}

The special function units (`MUFU`: exponentials, reciprocals, logarithms; {special} a clock and SM) have at most
{most:.0%} of their own budget to do ({most_of}).

A cell: loss / budget · with gradient / budget. **Bold: above the budget by more than {tolerance:.0%}**, rows of up to
{longest} classes by more than {short_tolerance:.0%}: what a row takes of its own is shared by few elements.
"""


def write_budget(found: Sequence[Share]) -> str:
    devices = list(dict.fromkeys(share.device for share in found))
    most = max(found, key=lambda share: share.special)
    introduction = INTRODUCTION.format(
        issue=ISSUE_SLOTS,
        special=SPECIAL_SLOTS,
        devices="\n".join(_device(device) for device in devices),
        most=most.special,
        most_of=most,
        tolerance=TOLERANCE - 1,
        short_tolerance=SHORT_ROWS_TOLERANCE - 1,
        longest=FEW[-1],
    )
    tables = [
        f"### {dtype}\n\n{_table([share for share in found if share.problem.dtype == dtype], devices)}"
        for dtype in ITEM_BYTES
    ]
    return "\n".join([introduction, *tables, above_budget(found)])


ABOVE = "### Above the budget"


def above_budget(found: Sequence[Share]) -> str:
    """A line for each problem: the GPUs, each with the count and the budget."""
    lines = [f"* {share}: {figures(share)}" for share in found if share.is_above]
    return "\n".join([f"{ABOVE}\n\n{len(lines)} of {len(found)} are:\n", *lines]) + "\n"


def figures(share: Share) -> str:
    return f"{share.cost.issued:.1f} / {share.budget:.1f}"


def _device(device: Device) -> str:
    per_byte = device.instructions(1), device.special_functions(1)
    figures_of_device = (
        f"{device.gigabytes_per_second}",
        f"{device.multiprocessors}",
        f"{device.gigahertz}",
        f"{device.bytes_per_clock:.1f}",
        *(f"{rate:.2f}" for rate in per_byte),
    )
    return row([device.name, capability(device.architecture), *figures_of_device])


def _table(found: Sequence[Share], devices: Sequence[Device]) -> str:
    lines = [row(["problem", *(device.name for device in devices)]), row([":--"] + ["--:"] * len(devices))]
    for title in dict.fromkeys(share.problem.title for share in found):
        cells = [
            " · ".join(_cell(it) for it in found if (it.problem.title, it.device) == (title, device))
            for device in devices
        ]
        lines.append(row([title, *cells]))
    return "\n".join(lines) + "\n"


def _cell(share: Share) -> str:
    return f"**{figures(share)}**" if share.is_above else figures(share)
