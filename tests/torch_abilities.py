"""What this torch can do, asked of torch and not of its version number."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
import torch.nn.functional as F


def makes_tensors_over_memory() -> bool:
    """With a deleter, in its stable interface, from 2.11 on: without that no gradient is kept for the next one, and a
    compiled graph reads the logits twice."""
    return _exports("torch_from_blob")


def says_what_an_error_was() -> bool:
    """In its stable interface, from 2.13 on."""
    return _exports("torch_exception_get_what_without_backtrace")


def _exports(name: str) -> bool:
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    return not library.exists() or hasattr(ctypes.CDLL(str(library)), name)


def _layer_and_loss(input, linear_weight, target, *, linear_bias=None, **options):
    bias = None if linear_bias is None else linear_bias.flatten()
    logits = F.linear(input, linear_weight.flatten(0, -2), bias).unflatten(-1, linear_weight.shape[:-1])
    return F.cross_entropy(logits, target, **options)


linear_cross_entropy = getattr(F, "linear_cross_entropy", _layer_and_loss)
"""Torch's own, which 2.13 has, or what it computes."""
