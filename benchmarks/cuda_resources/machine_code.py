"""Counts a kernel's accesses to global memory: those of 16 bytes or more, and the narrower ones."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cuda_resources.resources import ENTRY

WIDE_BITS = 128


@dataclass
class GlobalAccesses:
    wide_loads: int = 0
    narrow_loads: int = 0
    wide_stores: int = 0
    narrow_stores: int = 0

    def count(self, is_load: bool, bits: int) -> None:
        name = f"{'wide' if bits >= WIDE_BITS else 'narrow'}_{'loads' if is_load else 'stores'}"
        setattr(self, name, getattr(self, name) + 1)


# Gathers and scatters, reductions to one number, and adjacent positions of an image, of which a thread takes one or a
# chunk of 8 bytes.
NARROW_BY_DESIGN = re.compile(
    r"nll_loss_|weigh_targets_|finish_mean_|sum_class_weights_|reduce_losses_|cross_entropy_inner_"
    r"|cross_entropy_few_classes_kernel<\w+, \d+, false>"
)


# What they write is a number of each row.
READS_ALONE = re.compile(r"token_statistics_kernel<")


def should_be_wide(kernel: str) -> bool:
    """By its short name. A new kernel should, unless it is listed."""
    return NARROW_BY_DESIGN.match(kernel) is None


def should_store(kernel: str) -> bool:
    """Whether a kernel that should be wide has something of the logits' size to write."""
    return READS_ALONE.match(kernel) is None


SECTION = re.compile(r"^\s*\.section\s+\.text\.(\w+),")
# LD and ST: generic addresses, where the compiler did not see that they are global. Local and shared accesses have
# names of their own (LDL, LDS).
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(LDG|STG|LD|ST)((?:\.\w+)*)\s")


def disassemble(cubin: Path, nvdisasm: str) -> str:
    command = [nvdisasm, "--print-code", str(cubin)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def count_in_machine_code(listing: str) -> dict[str, GlobalAccesses]:
    """By mangled names, of nvdisasm's listing. The width is a modifier, 32 bits without one."""
    kernels: dict[str, GlobalAccesses] = {}
    accesses = GlobalAccesses()
    for line in listing.splitlines():
        if match := SECTION.match(line):
            accesses = kernels.setdefault(match[1], GlobalAccesses())
        elif match := INSTRUCTION.search(line):
            widths = [int(modifier) for modifier in match[2].split(".") if modifier.isdigit()]
            accesses.count(match[1].startswith("LD"), max(widths, default=32))
    return kernels


PTX_ACCESS = re.compile(r"^\s*(?:@!?%p\d+\s+)?(ld|st)\.(?:\w+\.)*?global((?:[.:]+\w+)*)")
PTX_TYPE = re.compile(r"\.[bsuf](\d+)$")
PTX_VECTOR = re.compile(r"\.v(\d)")


def count_in_ptx(ptx: str) -> dict[str, GlobalAccesses]:
    """The same of the PTX, where there is no disassembler: what is written there the assembler does not narrow."""
    kernels: dict[str, GlobalAccesses] = {}
    accesses = GlobalAccesses()
    for line in ptx.splitlines():
        if match := ENTRY.match(line):
            accesses = kernels.setdefault(match[1], GlobalAccesses())
        elif match := PTX_ACCESS.match(line):
            element = PTX_TYPE.search(match[2])
            vector = PTX_VECTOR.search(match[2])
            if element is None:
                raise ValueError(f"an access without a type: {line.strip()}")
            accesses.count(match[1] == "ld", int(element[1]) * (int(vector[1]) if vector else 1))
    return kernels
