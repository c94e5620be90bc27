"""No kernel issues more instructions than a GPU has time for while its memory moves what they need, but those that
docs/cuda_resources.md lists, and those not more than it says.

On one architecture, whose compiled kernels test_static_evidence.py looks at too; test_static_evidence_tools.py sees
that the page, which has the others, is of these sources. Needs nvcc and nvdisasm.
"""

import re
import warnings

import pytest
from compilation import ROOT, locked

from benchmarks.cuda_resources.budget import BUDGET_SOURCES, Share, shares
from benchmarks.cuda_resources.budget_table import ABOVE, above_budget, write_budget
from benchmarks.cuda_resources.compilation import BUILD, SOURCES, compile_all
from benchmarks.cuda_resources.issue_budget import DEVICES
from benchmarks.cuda_resources.kernel_work import FEW_CLASSES, ROW_GEOMETRIES, Cost, problems, rows
from benchmarks.cuda_resources.toolchain import MissingToolError, find_toolchain

DOCS = ROOT / "docs" / "cuda_resources.md"
LISTED = re.compile(r"^\* (?P<share>.+): (?P<issued>[\d.]+) / [\d.]+$", re.MULTILINE)
H100 = next(device for device in DEVICES if device.name == "H100")


def listed() -> dict[str, float]:
    """What the page says is above the budget, and its instructions an element."""
    section = DOCS.read_text().split(ABOVE)[1]
    return {match["share"]: float(match["issued"]) for match in LISTED.finditer(section)}


@pytest.fixture(scope="module")
def toolchain():
    try:
        found = find_toolchain()
        if found.disassembler is None:
            raise MissingToolError("no nvdisasm here: pip install nvidia-cuda-nvdisasm")
    except MissingToolError as error:
        warnings.warn(f"The CUDA kernels' instructions are NOT COUNTED: {error}", stacklevel=1)
        pytest.skip(f"the CUDA kernels' instructions are not counted: {error}")
    return found


@pytest.mark.slow
def test_kernels_are_within_the_budget_or_listed(toolchain):
    with locked(BUILD / "sources"):
        units = compile_all(toolchain, [H100.architecture], BUDGET_SOURCES)
    found = shares(toolchain, units)
    assert len(found) == len(list(problems(H100.architecture)))
    known = listed()
    # Another version of nvcc may need a few instructions more.
    worse = [share for share in found if share.is_above and share.cost.issued > 1.05 * known.get(str(share), 0)]
    assert not worse, above_budget(worse)
    if f"nvcc {toolchain.version}," in DOCS.read_text():
        above = {str(share) for share in found if share.is_above}
        names = {device.name for device in DEVICES if device.architecture == H100.architecture}
        assert above == {share for share in known if share.rsplit(", on ", 1)[1] in names}


def test_budget_is_the_one_that_was_counted_by_hand():
    """An H100 moves 14.5 bytes and issues 128 thread-instructions a clock and SM."""
    assert H100.bytes_per_clock == pytest.approx(14.5, abs=0.05)
    assert H100.instructions(2) == pytest.approx(17.7, abs=0.05)
    assert H100.special_functions(2) == pytest.approx(2.2, abs=0.05)


@pytest.mark.parametrize(
    ("classes", "issued", "special", "above"),
    [
        (1024, 1.09, 0.5, False),
        (1024, 1.11, 0.5, True),
        (1024, 0.5, 1.11, True),
        (3, 1.99, 0.5, False),
        (3, 2.01, 1, True),
    ],
)
def test_share_above_its_budget(classes, issued, special, above):
    problem = rows("float", classes, False, H100.architecture)
    budgets = H100.instructions(problem.moved_bytes), H100.special_functions(problem.moved_bytes)
    share = Share(problem, H100, Cost(issued * budgets[0], special * budgets[1]))
    assert share.is_above == above
    table = write_budget([share])
    assert (f"| **{share.cost.issued:.1f} / {share.budget:.1f}** |" in table) == above
    assert (f"* rows of {classes}, float, on H100: " in table) == above


def test_kernels_are_picked_as_the_sources_do():
    row_dispatch = (SOURCES / "cross_entropy_register_rows.cuh").read_text()
    geometries = re.findall(r"return launch_register_rows<T, RowGeometry<(\d+), (\d+)>>", row_dispatch)
    assert [(int(threads), int(packets)) for threads, packets in geometries] == list(ROW_GEOMETRIES)
    limits = re.findall(r"if \(packets <= (\d+)\) return launch_register_rows", row_dispatch)
    assert [int(limit) for limit in limits] == [threads * packets for threads, packets in ROW_GEOMETRIES[:-1]]
    few = re.findall(
        r"num_classes <= (\d+)\) return launch_few", (SOURCES / "cross_entropy_few_classes.cuh").read_text()
    )
    assert [int(most) for most in few] == list(FEW_CLASSES[:-1])
