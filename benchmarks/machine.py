"""Describes where and with what a run was made."""

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_machine import describe_gpu
from fused_losses import _C

ROOT = Path(__file__).parent.parent
MAX_LOAD_PER_CORE = 0.5
HUGE_PAGE_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def describe(device: str) -> dict[str, Any]:
    """A JSON-ready description; what this system does not tell is None."""
    description = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "memory_bytes": _memory_bytes(),
        "load_average_at_start": os.getloadavg()[0],
        "huge_pages": HUGE_PAGE_SETTING.read_text().strip() if HUGE_PAGE_SETTING.exists() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "fused_losses_build": _C.build_info(),
        "fused_losses_cpu_capability": _C.cpu_capability(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "gpu": None,
    }
    if device == "cuda":
        description |= {"gpu": torch.cuda.get_device_name(), "gpu_details": describe_gpu()}
    return description


def busy_warning(machine: dict[str, Any]) -> str | None:
    """A sentence if other programs were already running: their threads and ours then wait for each other."""
    load, cores = machine["load_average_at_start"], machine["cores"]
    if load < MAX_LOAD_PER_CORE * cores:
        return None
    return f"The load average is {load:.1f} on {cores} cores: expect noise, and times too long with several threads."


def _cpu_model() -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _usable_cores() -> int:
    """Those this process may run on, which is fewer than the machine has under taskset or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _git(*arguments: str) -> str | None:
    try:
        finished = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None
