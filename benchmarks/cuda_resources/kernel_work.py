"""What the kernels issue for an element: machine code's loops and ways, matched with what the sources say they do.

The kernels are picked as csrc/cuda picks them: tests/cuda/test_issue_budget.py compares the tables with the sources.
Rows begin aligned, targets are not ignored, weights of classes, smoothing and statistics for a backward are left out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

from benchmarks.cuda_resources.control_flow import LOOP, ControlFlow, Loop, NoWayError, Way
from benchmarks.cuda_resources.occupancy import LIMITS, RESERVED_SHARED_BYTES

PACKET_BYTES = 16
WARP_THREADS = 32
ITEM_BYTES = {"float": 4, "BFloat16": 2}
TARGET_BYTES = 8
STORES = frozenset({"wide_stores", "narrow_stores"})
# (threads of a row, packets of a thread), as cross_entropy_register_rows.cuh has them
ROW_GEOMETRIES = ((2, 1), (2, 4), (2, 8), (4, 8), (8, 8), (16, 8), (32, 8), (64, 8), (128, 8), (256, 8))
FEW_CLASSES = (4, 8, 16, 24, 32)
CLASSES_IN_FLIGHT = 8  # of the inner kernel
CHUNK_BYTES = 8  # of its threads


@dataclass(frozen=True)
class Cost:
    """Of one element."""

    issued: float
    special: float


@dataclass(frozen=True)
class Problem:
    title: str
    dtype: str
    classes: int
    gradient: bool
    is_short: bool  # a row's own work is shared by few elements
    kernel: str  # its short name
    moved_bytes: float  # an element
    cost: Callable[[ControlFlow], Cost]

    def __str__(self) -> str:
        return f"{self.title}, {self.dtype}{', with gradient' if self.gradient else ''}"


def rows(dtype: str, classes: int, gradient: bool, architecture: int) -> Problem:
    """Contiguous classes, index targets."""
    size = ITEM_BYTES[dtype]
    elements = PACKET_BYTES // size
    packets = classes // elements
    cost: Callable[[ControlFlow], Cost]
    if classes <= FEW_CLASSES[-1] and (classes * size < 64 or classes * size % PACKET_BYTES):
        most = next(most for most in FEW_CLASSES if classes <= most)
        kernel = f"cross_entropy_few_classes_kernel<{dtype}, {most}, true>"

        def cost(flow: ControlFlow) -> Cost:
            return _few_rows(flow, classes, size, gradient)

    elif packets <= ROW_GEOMETRIES[-1][0] * ROW_GEOMETRIES[-1][1]:
        threads, most = next(it for it in ROW_GEOMETRIES if packets <= it[0] * it[1])
        kernel = f"cross_entropy_register_rows_kernel<{dtype}, RowGeometry<{threads}, {most}>>"

        def cost(flow: ControlFlow) -> Cost:
            return _kept_row(flow, classes, packets, threads, elements, gradient)

    else:
        threads = _sweeping_threads(packets, architecture)
        kernel = f"cross_entropy_swept_rows_kernel<{dtype}, {threads}, false, NoTerms>"

        def cost(flow: ControlFlow) -> Cost:
            return _swept_row(flow, classes, packets, threads, elements, gradient)

    moved = size * (2 if gradient else 1) + TARGET_BYTES / classes
    return Problem(f"rows of {classes}", dtype, classes, gradient, classes in FEW, kernel, moved, cost)


def image(dtype: str, classes: int, gradient: bool) -> Problem:
    """(N, C, d1, ...): the positions are adjacent. Where classes are many the gradient reads the logits again."""
    size = ITEM_BYTES[dtype]
    cost: Callable[[ControlFlow], Cost]
    if classes <= FEW_CLASSES[-1]:
        most = next(most for most in FEW_CLASSES if classes <= most)
        kernel = f"cross_entropy_few_classes_kernel<{dtype}, {most}, false>"

        def cost(flow: ControlFlow) -> Cost:
            return _few_positions(flow, classes, gradient)

    else:
        positions = CHUNK_BYTES // size
        kernel = f"cross_entropy_inner_kernel<{dtype}, {positions}, false, NoTerms>"

        def cost(flow: ControlFlow) -> Cost:
            return _chunk_of_positions(flow, classes, positions, gradient)

    moved = size * (2 if gradient else 1) + TARGET_BYTES / classes
    return Problem(f"image of {classes}", dtype, classes, gradient, False, kernel, moved, cost)


def elementwise(formula: str, dtype: str, gradient: bool) -> Problem:
    """Binary losses of targets 0 and 1, without weights."""
    size = ITEM_BYTES[dtype]
    title = {"LogitFormula": "BCE with logits", "ProbabilityFormula": "BCE"}[formula]
    kernel = f"elementwise_loss_kernel<{dtype}, {dtype}, {formula}, false>"

    def cost(flow: ControlFlow) -> Cost:
        elements = PACKET_BYTES // size
        demands = {"wide_loads": 2, "exponentials" if formula == "LogitFormula" else "logarithms": elements}
        if gradient:
            demands["wide_stores"] = 1
        return _per_element(flow.cheapest(flow.loops[0], demands, STORES - demands.keys()), elements)

    return Problem(title, dtype, 1, gradient, False, kernel, size * (3 if gradient else 2), cost)


CLASSES = (128, 256, 512, 1000, 1024, 4096, 8192, 16384, 32000, 32768, 50257, 128256, 151936)
IMAGE_CLASSES = (19, 21, 150)
FEW = (2, 3, 5, 10, 21, 64)


def problems(architecture: int) -> Iterator[Problem]:
    """All that have a budget."""
    for dtype in ITEM_BYTES:
        for gradient in (False, True):
            for classes in FEW + CLASSES:
                yield rows(dtype, classes, gradient, architecture)
            for classes in IMAGE_CLASSES:
                yield image(dtype, classes, gradient)
            for formula in ("LogitFormula", "ProbabilityFormula"):
                yield elementwise(formula, dtype, gradient)


# What a row's own work is known by: target and its logit are read, a logarithm is taken, the loss is added.
ROW_DEMANDS = {"narrow_loads": 2, "logarithms": 1, "sums": 1}


def _kept_row(flow: ControlFlow, classes: int, packets: int, threads: int, elements: int, gradient: bool) -> Cost:
    row = flow.loops[0]

    def way(slots: int) -> Way:
        exponentials = slots * elements * (2 if gradient else 1) + 1  # the target's
        demands = ROW_DEMANDS | {"exponentials": exponentials} | ({"wide_stores": slots} if gradient else {})
        return flow.cheapest(row, demands, frozenset() if gradient else frozenset({"wide_stores"}))

    return _of_warps((way(_slots(packets, first, threads)) for first in _first_lanes(threads)), threads, classes)


def _swept_row(flow: ControlFlow, classes: int, packets: int, threads: int, elements: int, gradient: bool) -> Cost:
    row, in_flight = flow.loops[0], 3
    reading, writing = _sweeps(flow, row, in_flight * elements)
    passed = {LOOP.format(loop.head): 1 for loop in ([reading, writing] if gradient else [reading])}
    round_work = {"exponentials": in_flight * elements}
    round_way = flow.cheapest(reading, round_work, STORES)
    if gradient:
        round_way += flow.cheapest(writing, round_work | {"wide_stores": in_flight})
    ways: dict[int, Way] = {}

    def own(left: int) -> Way:
        """Besides the rounds: with the packets that are left, fewer than a round's."""
        if left not in ways:
            exponentials = left * elements * (2 if gradient else 1) + 1  # the target's
            demands = ROW_DEMANDS | passed | {"exponentials": exponentials}
            ways[left] = flow.cheapest(row, demands | ({"wide_stores": left} if gradient else {}))
        return ways[left]

    def way(first: int) -> Way:
        rounds, left = divmod(_slots(packets, first, threads), in_flight)
        return own(left) + round_way * rounds

    return _of_warps(map(way, _first_lanes(threads)), threads, classes)


def _sweeps(flow: ControlFlow, row: Loop, exponentials: int) -> tuple[Loop, Loop]:
    """The loop that reads packets and the one that writes them."""
    loops = [loop for loop in flow.inside(row) if flow.work(loop).get("exponentials", 0) >= exponentials]
    writing = [loop for loop in loops if flow.work(loop).get("wide_stores", 0)]
    reading = [loop for loop in loops if not STORES & flow.work(loop).keys()]
    if len(reading) != 1 or len(writing) != 1:
        raise NoWayError(f"{len(reading)} loops read packets and {len(writing)} write them, not one and one")
    return reading[0], writing[0]


def _few_rows(flow: ControlFlow, classes: int, size: int, gradient: bool) -> Cost:
    tile = flow.loops[0]
    demands = {"narrow_loads": 1, "logarithms": 1, "sums": 1, "exponentials": classes + 1}
    packets = classes * size / PACKET_BYTES  # of a thread, on average
    issued = 0.0
    staging = [loop for loop in flow.inside(tile) if not flow.work(loop).get("exponentials")]
    for kind in ("wide_loads", "wide_stores") if gradient else ("wide_loads",):
        # A loop may be unrolled, and what is left has a loop of its own: the one that takes less for a packet.
        found = [
            (flow.cheapest(loop, {kind: 1}).issued / flow.work(loop)[kind], loop.head)
            for loop in staging
            if _moves(flow, loop, kind)
        ]
        of_packet, head = min(found)
        issued += of_packet * packets
        demands[LOOP.format(head)] = 1
    own = flow.cheapest(tile, demands)
    return Cost((own.issued + issued) / classes, own.special / classes)


def _moves(flow: ControlFlow, loop: Loop, kind: str) -> bool:
    return bool(flow.work(loop).get(kind)) and (kind == "wide_stores" or not STORES & flow.work(loop).keys())


def _few_positions(flow: ControlFlow, classes: int, gradient: bool) -> Cost:
    demands = {"narrow_loads": classes + 1, "logarithms": 1, "sums": 1, "exponentials": classes + 1}
    if gradient:
        demands["narrow_stores"] = classes
    return _per_element(flow.cheapest(flow.loops[0], demands), classes)


def _chunk_of_positions(flow: ControlFlow, classes: int, positions: int, gradient: bool) -> Cost:
    chunk = flow.loops[0]
    demands = {"narrow_loads": 2 * positions, "logarithms": positions, "sums": positions, "exponentials": positions}
    at_a_time = CLASSES_IN_FLIGHT * positions
    loops = flow.inside(chunk)
    reading = [it for it in loops if flow.work(it).get("exponentials", 0) >= at_a_time and not _stores(flow, it)]
    if len(reading) != 1:
        raise NoWayError(f"{len(reading)} loops read classes, not one")
    rounds = ceil(classes / CLASSES_IN_FLIGHT)
    way = flow.cheapest(reading[0], {"exponentials": at_a_time, "narrow_loads": CLASSES_IN_FLIGHT})
    issued, special = float(way.issued * rounds), float(way.special * rounds)
    demands[LOOP.format(reading[0].head)] = 1
    if gradient:
        writing = [it for it in loops if flow.work(it).get("exponentials", 0) >= positions and _stores(flow, it)]
        # Unrolled, with a loop for what is left: the one that does more at a time.
        loop = max(writing, key=lambda it: flow.work(it)["exponentials"])
        unrolled = flow.work(loop)["exponentials"] // positions
        way = flow.cheapest(loop, {"exponentials": unrolled * positions, "narrow_stores": unrolled})
        issued += way.issued * classes / unrolled
        special += way.special * classes / unrolled
        demands[LOOP.format(loop.head)] = 1
    own = flow.cheapest(chunk, demands)
    count = classes * positions
    return Cost((issued + own.issued) / count, (special + own.special) / count)


def _stores(flow: ControlFlow, loop: Loop) -> bool:
    return bool(STORES & flow.work(loop).keys())


def _per_element(way: Way, elements: int) -> Cost:
    return Cost(way.issued / elements, way.special / elements)


def _first_lanes(threads: int) -> range:
    return range(0, threads, WARP_THREADS)


def _slots(packets: int, first_lane: int, threads: int) -> int:
    """How many packets the first lane of a warp has, which has as many as any other lane."""
    return max(0, ceil((packets - first_lane) / threads))


def _of_warps(ways: Iterator[Way], threads: int, classes: int) -> Cost:
    lanes = min(threads, WARP_THREADS)
    total = Way(0, 0)
    for way in ways:
        total += way
    return Cost(total.issued * lanes / classes, total.special * lanes / classes)


def _sweeping_threads(packets: int, architecture: int) -> int:
    room = (LIMITS[architecture].shared_bytes - RESERVED_SHARED_BYTES) // PACKET_BYTES
    return 256 if 3 * packets <= room else 512 if 2 * packets <= room else 1024
