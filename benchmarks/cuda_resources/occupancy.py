"""Theoretical occupancy: the share of a multiprocessor's warp slots that a kernel's resident blocks fill.

The limits are those of the CUDA Programming Guide, 5.1 Compute Capabilities, tables 30 and 31
(https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html); the way that resources
are allotted is that of cuda_occupancy.h, which comes with the CUDA toolkit.
"""

from dataclasses import dataclass
from typing import Literal

from benchmarks.cuda_resources.resources import Resources

Resource = Literal["warps", "blocks", "registers", "shared memory"]


@dataclass(frozen=True)
class Limits:
    """Of a multiprocessor (SM)."""

    warps: int
    blocks: int
    shared_bytes: int
    registers: int = 65536


LIMITS = {
    80: Limits(warps=64, blocks=32, shared_bytes=164 << 10),
    86: Limits(warps=48, blocks=16, shared_bytes=100 << 10),
    89: Limits(warps=48, blocks=24, shared_bytes=100 << 10),
    90: Limits(warps=64, blocks=32, shared_bytes=228 << 10),
    100: Limits(warps=64, blocks=32, shared_bytes=228 << 10),
    103: Limits(warps=64, blocks=32, shared_bytes=228 << 10),
    120: Limits(warps=48, blocks=24, shared_bytes=100 << 10),
}

WARP_THREADS = 32
SUB_PARTITIONS = 4  # a warp's registers lie in one quarter of the SM's
REGISTER_UNIT = 256  # registers, per warp
SHARED_UNIT = 128  # bytes, per block
RESERVED_SHARED_BYTES = 1024  # per block, for CUDA itself


@dataclass(frozen=True)
class Occupancy:
    blocks: int  # resident on one SM
    warps: int
    fraction: float
    limited_by: Resource  # of those that allow the same number of blocks the first in the order of Resource


def occupancy(kernel: Resources, architecture: int) -> Occupancy:
    limits = LIMITS[architecture]
    warps_per_block = -(-kernel.threads // WARP_THREADS)
    registers_per_warp = _round_up(kernel.registers * WARP_THREADS, REGISTER_UNIT)
    warps_by_registers = limits.registers // SUB_PARTITIONS // registers_per_warp * SUB_PARTITIONS
    shared_per_block = _round_up(kernel.shared_bytes + RESERVED_SHARED_BYTES, SHARED_UNIT)
    blocks_by: dict[Resource, int] = {
        "warps": limits.warps // warps_per_block,
        "blocks": limits.blocks,
        "registers": warps_by_registers // warps_per_block,
        "shared memory": limits.shared_bytes // shared_per_block,
    }
    limited_by = min(blocks_by, key=lambda resource: blocks_by[resource])
    blocks = blocks_by[limited_by]
    warps = blocks * warps_per_block
    return Occupancy(blocks, warps, warps / limits.warps, limited_by)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
