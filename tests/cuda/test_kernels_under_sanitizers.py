"""The CUDA kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, without torch.

AddressSanitizer sees every element type in every order of execution. What ThreadSanitizer looks for depends on the
threads and not on the type, and there a barrier is expensive: it sees float32 in three orders, and in one order a type
with eight elements in a packet.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from sanitized_kernels import kernels_program
from sanitized_programs import ORDERS, Programs, result_of

pytestmark = pytest.mark.slow

RUNS = [
    *(("address", order, "") for order in ORDERS),
    *(("thread", order, "float32") for order in ("ascending", "descending", "warps")),
    ("thread", "warps", "bfloat16"),
]


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[tuple[str, str, str], Future]]:
    """All at once, in the background."""
    programs = Programs()
    program = kernels_program()
    programs.prepare(["address", "thread"], program)
    yield {
        (flavor, order, dtype): programs.start(flavor, program, order, "0", "all", dtype)
        for flavor, order, dtype in RUNS
    }
    programs.close()


@pytest.mark.parametrize(("flavor", "order", "dtype"), RUNS)
def test_kernels_are_right_and_clean(runs, flavor: str, order: str, dtype: str) -> None:
    result = result_of(flavor, runs[flavor, order, dtype])
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
