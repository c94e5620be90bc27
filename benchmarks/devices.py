"""The device of a command: ``--device cpu`` or ``--device cuda``."""

from __future__ import annotations

import argparse

from benchmarks.cpu_device import CpuDevice
from benchmarks.cuda_device import CudaDevice, why_unusable
from benchmarks.device import Device

__all__ = ["add_device_argument", "device_called"]


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")


def device_called(name: str, parser: argparse.ArgumentParser) -> Device:
    """Ends the command where nothing can be measured there."""
    if name == "cpu":
        return CpuDevice()
    if reason := why_unusable():
        parser.error(reason)
    return CudaDevice()
