"""The CPU kernels as aarch64 runs them: every loss, type and layout against float64, under qemu.

The checks are those that the sanitizers run on the CUDA kernels, tests/cuda/emulation/kernels, with the CPU kernels
behind the same entry points, and those of tests/native/cpu_kernels.
"""

from __future__ import annotations

import numpy as np
import pytest
from cross_compilation import program, run, unavailable
from test_elementary_functions import TABLE, largest_error_of, points_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(unavailable() is not None, reason=f"kernels for aarch64: SKIPPED, {unavailable()}"),
]

DTYPES = ["float32", "float64", "bfloat16", "float16"]
SECTIONS = ["cross_entropy", "row_terms", "nll_loss", "binary_cross_entropy", "token_statistics"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("section", SECTIONS)
def test_losses_and_gradients_are_those_of_float64(section: str, dtype: str) -> None:
    result = run(program("checks", "entry_points"), section, dtype)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_numbers_are_read_exactly_and_rounded_to_nearest(dtype: str) -> None:
    result = run(program("checks", "entry_points"), "sixteen_bits", dtype)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("function", "reference", "spacing", "range32", "range64", "bound"), TABLE)
def test_error_in_ulp_is_bounded_over_the_range(
    function: int, reference, spacing: str, range32, range64, bound: float, dtype: type
) -> None:
    points = points_of(function, spacing, range32 if dtype is np.float32 else range64, dtype, 20_000)
    result = run(program("elementary_functions"), str(function), np.dtype(dtype).name, numbers=points.tobytes())
    assert result.returncode == 0, result.stderr
    assert largest_error_of(np.frombuffer(result.stdout, dtype), points, reference) <= bound
