"""`pytest --quick`: what `make test` runs. Of a large grid of parameters a part, and nothing that is marked slow.

Of a test function with more than WHOLE_GRID cases so many are kept that every pair of values of two parameters occurs:
every loss with every type, every type on every device. Which ones depends on the grid alone, never on chance or on a
run before. What is left out is counted at the end of the run; `make test-all` leaves nothing out. `make test-rest` runs
what was left out, by `pytest --rest`, and once more what draws fewer examples in a quick run.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Sequence
from itertools import combinations

import pytest

WHOLE_GRID = 24


def covering(cases: Sequence[dict[str, int]], names: Sequence[str]) -> set[int]:
    """Which of the cases to keep, each the identities of its parameters' values, so that every pair of values
    that occurs in a case occurs in one that is kept.

    The case with the most new pairs comes next, of several that whose name has the least checksum: first ones would
    all have the first value of the other parameters.
    """
    pairs = [set(combinations(sorted(case.items()), 2)) or set(case.items()) for case in cases]
    uncovered = set().union(*pairs)
    # A case never gains new pairs: the count in the heap is a bound, and the first whose count is true is the best.
    heap = [(-len(pairs[i]), zlib.crc32(names[i].encode()), i) for i in range(len(cases))]
    heapq.heapify(heap)
    kept = set()
    while uncovered:
        _, checksum, i = heapq.heappop(heap)
        count = len(pairs[i] & uncovered)
        if heap and -count > heap[0][0]:
            heapq.heappush(heap, (-count, checksum, i))
            continue
        kept.add(i)
        uncovered -= pairs[i]
    return kept


def select(items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """What a quick run takes, in the order of the collection, and what it leaves out."""
    grids: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("slow") is None:
            grids.setdefault(item.nodeid.split("[")[0], []).append(item)
    kept: set[pytest.Item] = set()
    for grid in grids.values():
        if len(grid) <= WHOLE_GRID:
            kept.update(grid)
        else:
            cases = [{name: id(value) for name, value in item.callspec.params.items()} for item in grid]
            kept.update(grid[i] for i in covering(cases, [item.nodeid for item in grid]))
    return [item for item in items if item in kept], [item for item in items if item not in kept]


def rest(items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """What is left to run after a quick run, and what that has run."""
    quick, _ = select(items)
    done = {item for item in quick if not hasattr(getattr(item, "obj", None), "hypothesis")}
    return [item for item in items if item not in done], [item for item in items if item in done]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="a part of each large grid of parameters, nothing that is marked slow: tests/quick_selection.py",
    )
    parser.addoption("--rest", action="store_true", help="what --quick leaves out or does in part")


LEFT_OUT = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The slow ones first: of pytest-xdist's processes one takes those that share what is compiled for them, while the
    # others are busy with the rest, and none is left alone with one of them at the end.
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if config.getoption("--quick"):
        items[:], left_out = select(items)
        config.stash[LEFT_OUT] = len(left_out)
        config.hook.pytest_deselected(items=left_out)
    elif config.getoption("--rest"):
        items[:], done = rest(items)
        config.hook.pytest_deselected(items=done)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist tells the process that reports."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)  # type: ignore[attr-defined]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = config.stash.get(LEFT_OUT, 0)
    if left_out:
        terminalreporter.write_line(
            f"fused_losses: a quick run, {left_out} tests of large grids or marked slow were LEFT OUT; "
            "`make test-all` runs them all"
        )
