"""The CUDA kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, without torch.

AddressSanitizer sees its types in every order of execution. For ThreadSanitizer a barrier is expensive: it sees float32
in three orders, and in one order a type with eight elements in a packet.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from sanitized_kernels import SANITIZED_DTYPES, kernels_program
from sanitized_programs import ORDERS, Programs, result_of

pytestmark = pytest.mark.slow

RUNS = [
    *(("address", order, dtype) for dtype in SANITIZED_DTYPES["address"] for order in ORDERS),
    *(("thread", order, "float32") for order in ("ascending", "descending", "warps")),
    ("thread", "warps", "bfloat16"),
]


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[tuple[str, str, str], Future]]:
    """All at once, in the background."""
    programs = Programs()
    of_flavor = {flavor: kernels_program(dtypes) for flavor, dtypes in SANITIZED_DTYPES.items()}
    for flavor, program in of_flavor.items():
        programs.prepare([flavor], program)
    yield {
        (flavor, order, dtype): programs.start(flavor, of_flavor[flavor], order, "0", "all", dtype)
        for flavor, order, dtype in RUNS
    }
    programs.close()


@pytest.mark.parametrize(("flavor", "order", "dtype"), RUNS)
def test_kernels_are_right_and_clean(runs, flavor: str, order: str, dtype: str) -> None:
    result = result_of(flavor, runs[flavor, order, dtype])
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
