"""A kernel's machine code as a graph, and the cheapest way through it that does a stated amount of work.

A way is what a warp issues: an instruction whose predicate is false takes its slot too, a branch that every thread
takes leaves out what it jumps over. What is behind a call (the slow ways of divisions) or a trap is not entered, and
lanes of a warp stay together.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from benchmarks.cuda_resources.machine_code import SECTION, WIDE_BITS

LABEL = re.compile(r"^\s*(\.L_x_\w+):")
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?(\w+)((?:\.\w+)*)([^;]*);")
ENDS = ("BRA", "EXIT", "RET")  # of blocks
TARGET = re.compile(r"\(?(\.L_x_\w+)\)")

# What a way does, and how much of it at least: names of WORK.
Demands = Mapping[str, int]
WORK = ("wide_loads", "narrow_loads", "wide_stores", "narrow_stores", "exponentials", "logarithms", "sums")
# The work of passing an inner loop, for a demand.
LOOP = "loop {}"


@dataclass(frozen=True)
class Instruction:
    name: str
    modifiers: tuple[str, ...]
    predicate: str | None
    target: str | None  # of a branch

    @property
    def is_wide(self) -> bool:
        return any(part.isdigit() and int(part) >= WIDE_BITS for part in self.modifiers)

    @property
    def work(self) -> str | None:
        """The name in WORK of what it counts for."""
        if self.name in ("LDG", "LD"):
            return "wide_loads" if self.is_wide else "narrow_loads"
        if self.name in ("STG", "ST"):
            return "wide_stores" if self.is_wide else "narrow_stores"
        if self.name == "MUFU":
            return {"EX2": "exponentials", "LG2": "logarithms"}.get(self.modifiers[0])
        if self.name in ("I2F", "I2FP"):  # the exponent, in the polynomials of logf and log1pf
            return "logarithms"
        return "sums" if self.name == "DADD" else None


@dataclass
class Block:
    """Instructions that are executed one after the other, and the numbers of the blocks that may follow."""

    instructions: list[Instruction] = field(default_factory=list)
    next: list[int] = field(default_factory=list)
    is_entered: bool = True  # False: it calls or traps

    @cached_property
    def issued(self) -> int:
        return sum(it.name != "NOP" for it in self.instructions)

    @cached_property
    def special(self) -> int:
        """What the special function units do (MUFU)."""
        return sum(it.name == "MUFU" for it in self.instructions)

    @cached_property
    def work(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for instruction in self.instructions:
            if instruction.work is not None:
                counts[instruction.work] = counts.get(instruction.work, 0) + 1
        return counts


@dataclass(frozen=True)
class Way:
    issued: int
    special: int

    def __add__(self, other: "Way") -> "Way":
        return Way(self.issued + other.issued, self.special + other.special)

    def __mul__(self, times: int) -> "Way":
        return Way(self.issued * times, self.special * times)


@dataclass(frozen=True)
class Loop:
    head: int
    blocks: frozenset[int]


class NoWayError(ValueError):
    """Nothing in the machine code does the work that was asked for."""


class ControlFlow:
    """Of one kernel."""

    def __init__(self, listing: Iterable[str]) -> None:
        self.blocks = _blocks(listing)

    @cached_property
    def loops(self) -> list[Loop]:
        """Natural loops, outer ones before those in them; those with one head are one."""
        dominators = self._dominators()
        previous = self._previous()
        bodies: dict[int, set[int]] = {}
        for tail in dominators:
            for head in self.blocks[tail].next:
                if head not in dominators[tail]:
                    continue
                body = bodies.setdefault(head, {head})
                stack = [tail]
                while stack:
                    block = stack.pop()
                    if block not in body:
                        body.add(block)
                        stack += previous.get(block, [])
        loops = [Loop(head, frozenset(body)) for head, body in bodies.items()]
        return sorted(loops, key=lambda loop: (-len(loop.blocks), loop.head))

    def inside(self, outer: Loop) -> list[Loop]:
        """The loops in a loop, without those in them."""
        inner = [loop for loop in self.loops if loop.blocks < outer.blocks]
        return [loop for loop in inner if not any(loop.blocks < other.blocks for other in inner)]

    def work(self, loop: Loop) -> dict[str, int]:
        """All that stands in a loop, inner ones included."""
        total: dict[str, int] = {}
        for block in loop.blocks:
            for name, count in self.blocks[block].work.items():
                total[name] = total.get(name, 0) + count
        return total

    def cheapest(self, loop: Loop, demands: Demands, forbidden: frozenset[str] = frozenset()) -> Way:
        """Once round a loop: the fewest instructions that do at least what is demanded and nothing that is forbidden.

        Loops in it are passed by: their instructions do not count, and what they do is not found but as LOOP.
        """
        inner = {loop.head: loop for loop in self.inside(loop)}
        names = tuple(demands)
        wanted = tuple(demands.values())
        start = tuple(0 for _ in names)
        ways: dict[int, dict[tuple[int, ...], Way]] = {loop.head: {start: Way(0, 0)}}
        best: Way | None = None
        for block, following in self._in_order(loop, inner):
            passed = inner.get(block)
            content = self.blocks[block]
            if block not in ways or (passed is None and not self._may_enter(content, forbidden)):
                continue
            for done, way in ways.pop(block).items():
                if passed is None:
                    way += Way(content.issued, content.special)
                does = content.work if passed is None else {LOOP.format(block): 1}
                done = tuple(
                    min(count + does.get(name, 0), want) for name, count, want in zip(names, done, wanted, strict=True)
                )
                for after in following:
                    if after == loop.head:
                        if done == wanted and (best is None or way.issued < best.issued):
                            best = way
                    elif after in loop.blocks:
                        known = ways.setdefault(after, {})
                        if done not in known or way.issued < known[done].issued:
                            known[done] = way
        if best is None:
            raise NoWayError(f"no way round the loop does {dict(demands)} without {sorted(forbidden)}")
        return best

    @staticmethod
    def _may_enter(block: Block, forbidden: frozenset[str]) -> bool:
        return block.is_entered and not forbidden & block.work.keys()

    def _in_order(self, loop: Loop, inner: Mapping[int, Loop]) -> Iterator[tuple[int, list[int]]]:
        """The loop's blocks, each after those that lead to it, with those behind it; an inner loop is its head."""
        following: dict[int, list[int]] = {}

        def behind(block: int) -> list[int]:
            if block not in inner:
                return self.blocks[block].next
            body = inner[block].blocks
            return sorted({after for member in body for after in self.blocks[member].next if after not in body})

        done: list[int] = []
        seen = {loop.head}
        stack = [(loop.head, iter(following.setdefault(loop.head, behind(loop.head))))]
        while stack:
            block, rest = stack[-1]
            after = next(rest, None)
            if after is None:
                done.append(block)
                stack.pop()
            elif after in loop.blocks and after not in seen:
                seen.add(after)
                stack.append((after, iter(following.setdefault(after, behind(after)))))
        return ((block, following[block]) for block in reversed(done))

    def _previous(self) -> dict[int, list[int]]:
        previous: dict[int, list[int]] = {}
        for number, block in enumerate(self.blocks):
            for after in block.next:
                previous.setdefault(after, []).append(number)
        return previous

    def _dominators(self) -> dict[int, frozenset[int]]:
        """Of each block that is reached: those that every way to it passes."""
        previous = self._previous()
        order = [block for block, _ in self._in_order(Loop(0, frozenset(range(len(self.blocks)))), {})]
        dominators = {0: frozenset({0})}
        changed = True
        while changed:
            changed = False
            for block in order[1:]:
                known = [dominators[before] for before in previous[block] if before in dominators]
                found = frozenset.intersection(*known) | {block}
                if dominators.get(block) != found:
                    dominators[block] = found
                    changed = True
        return dominators


def control_flow(listing: str) -> dict[str, ControlFlow]:
    """Of every kernel by its mangled name, of nvdisasm's listing."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in listing.splitlines():
        if match := SECTION.match(line):
            lines = sections.setdefault(match[1], [])
        lines.append(line)
    return {name: ControlFlow(section) for name, section in sections.items()}


def _blocks(listing: Iterable[str]) -> list[Block]:
    blocks = [Block()]
    numbers: dict[str, int] = {}
    for line in listing:
        if match := LABEL.match(line):
            if blocks[-1].instructions:
                blocks.append(Block())
            numbers[match[1]] = len(blocks) - 1
        elif match := INSTRUCTION.match(line):
            target = TARGET.search(match[5])
            modifiers = tuple(match[4].split(".")[1:])
            # A call of a place in the kernel itself is how 8.x leaves some loops.
            may_jump = match[3] in ("BRA", "CALL") and "DIV" not in modifiers
            target_label = target[1] if target is not None and may_jump else None
            is_conditional = match[2] is not None or bool(re.match(r"\s*!?U?P\d", match[5]))
            predicate = (match[2] or match[5].strip()) if is_conditional else None
            blocks[-1].instructions.append(Instruction(match[3], modifiers, predicate, target_label))
            if target_label is not None or match[3] in ENDS:
                blocks.append(Block())
    for number, block in enumerate(blocks):
        _follow(block, number, len(blocks), numbers)
    return blocks


def _follow(block: Block, number: int, count: int, numbers: Mapping[str, int]) -> None:
    block.is_entered = not any(_is_away(it) for it in block.instructions)
    last = block.instructions[-1] if block.instructions else None
    falls_through = True
    if last is not None and (last.target is not None or last.name in ENDS):
        falls_through = last.predicate is not None or "DIV" in last.modifiers
        if last.target is not None:
            block.next.append(numbers[last.target])
    if falls_through and number + 1 < count:
        block.next.append(number + 1)


def _is_away(instruction: Instruction) -> bool:
    if instruction.name == "WARPSYNC":
        return "COLLECTIVE" in instruction.modifiers
    return instruction.name == "BPT" or (instruction.name == "CALL" and instruction.target is None)
