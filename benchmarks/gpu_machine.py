"""Describes the GPU of a run."""

import subprocess
from typing import Any

import torch

# Clocks are those at the start of the run; a GPU that was idle then is below what it reaches.
NVIDIA_SMI_FIELDS = (
    "driver_version",
    "clocks.current.sm",
    "clocks.current.memory",
    "clocks.max.sm",
    "clocks.max.memory",
    "power.limit",
)


def describe_gpu() -> dict[str, Any]:
    """A JSON-ready description of the current GPU; what nvidia-smi does not tell is None."""
    properties = torch.cuda.get_device_properties()
    return {
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "second_level_cache_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        **_nvidia_smi(str(properties.uuid)),
    }


def _nvidia_smi(uuid: str) -> dict[str, str | None]:
    # By its UUID: torch and nvidia-smi may number GPUs differently.
    command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(NVIDIA_SMI_FIELDS)}", "--format=csv,noheader"]
    nothing: dict[str, str | None] = dict.fromkeys(NVIDIA_SMI_FIELDS)
    try:
        finished = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return nothing
    if finished.returncode != 0:
        return nothing
    return nothing | dict(zip(NVIDIA_SMI_FIELDS, finished.stdout.strip().split(", "), strict=True))
