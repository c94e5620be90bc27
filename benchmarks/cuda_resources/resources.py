"""What a kernel takes of a multiprocessor, from the assembler's log and from the PTX."""

import math
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    registers: int  # per thread
    shared_bytes: int  # static, per block
    stack_bytes: int  # per thread
    spill_bytes: int  # stored and loaded, per thread
    threads: int  # per block, at most


COMPILING = re.compile(r"Compiling entry function '(\S+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
ENTRY = re.compile(r"^(?:\.visible |\.weak )*\.entry (\w+)\(")
MAX_THREADS = re.compile(r"^\.maxntid ([\d, ]+)$")


def parse_resources(log: str, ptx: str) -> dict[str, Resources]:
    """Of every kernel by its mangled name. The log is that of ``ptxas -v``."""
    threads = parse_max_threads(ptx)
    kernels: dict[str, Resources] = {}
    kernel = None
    stack = spills = 0
    for line in log.splitlines():
        if match := COMPILING.search(line):
            kernel, stack, spills = match[1], 0, 0
        elif match := STACK.search(line):
            # A function that is not inlined has a line of its own: it belongs to the kernel that is being compiled.
            stack = max(stack, int(match[1]))
            spills += int(match[2]) + int(match[3])
        elif (match := USED.search(line)) and kernel is not None:
            shared = SHARED.search(line)
            kernels[kernel] = Resources(
                registers=int(match[1]),
                shared_bytes=int(shared[1]) if shared else 0,
                stack_bytes=stack,
                spill_bytes=spills,
                threads=threads[kernel],
            )
    if kernels.keys() != threads.keys():
        raise ValueError(f"log and PTX differ in their kernels: {sorted(kernels.keys() ^ threads.keys())}")
    return kernels


def parse_max_threads(ptx: str) -> dict[str, int]:
    """The first argument of __launch_bounds__; a kernel without one is an error, it could be launched with any."""
    threads: dict[str, int] = {}
    names: list[str] = []
    for line in ptx.splitlines():
        if match := ENTRY.match(line):
            names.append(match[1])
        elif match := MAX_THREADS.match(line):
            threads[names[-1]] = math.prod(int(size) for size in match[1].split(","))
    if unbounded := set(names) - threads.keys():
        raise ValueError(f"no __launch_bounds__: {sorted(unbounded)}")
    return threads
