"""The kernels of every instruction set compute in packed registers, the baseline included."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What the sweeps are made of; NLL only gathers, and the elementary functions and the scan of targets are in these.
KERNELS = [
    "cross_entropy_rows",
    "cross_entropy_inner_tiles",
    "cross_entropy_transposed_tiles",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "sigmoid_focal_loss",
    "token_statistics",
    "logit_units",
]
OBJECTS = [path for name in KERNELS for path in sorted(ROOT.glob(f"build/kernels/*/csrc/cpu/{name}.o"))]
# addps, vmulpd, vfmadd231ps, ... and their scalar twins, which end in s.
ARITHMETIC = re.compile(r"\tv?(?:add|sub|mul|div|max|fn?m(?:add|sub)\d{3})(p|s)[sd]\b")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the mnemonics are x86-64's")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump (binutils) is not installed")
@pytest.mark.skipif(not OBJECTS, reason="no kernel objects under build/: fused_losses was not built in this checkout")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: f"{path.parts[-4]}-{path.stem}")
def test_arithmetic_is_packed(path: Path) -> None:
    listing = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", path], check=True, capture_output=True, text=True
    ).stdout
    count = Counter(match.group(1) for match in ARITHMETIC.finditer(listing))
    # Scalar are what a row, a tile or a block ends with: sums over lanes, blocks and the batch. A loop that the
    # compiler took apart would have one scalar instruction for each lane, and so more scalar ones than packed.
    assert count["p"] > 500
    assert count["p"] > 2 * count["s"]
