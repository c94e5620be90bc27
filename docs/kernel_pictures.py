"""Draws the pictures of docs/how_a_kernel_works.md: `python docs/kernel_pictures.py`.

The sizes in them are read from the kernels' sources.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "images"

STYLE = """
svg { color: #24292f; font: 13px sans-serif; }
text { fill: currentColor; } .small { font-size: 11px; } .middle { text-anchor: middle; } .bold { font-weight: bold; }
.cell { fill: none; stroke: currentColor; stroke-width: 0.5; } .box { fill: none; stroke: currentColor; }
.dashed { fill: none; stroke: currentColor; stroke-dasharray: 4 3; } .arrow { stroke: currentColor; }
.head { fill: currentColor; } .row { fill: #56b4e9; fill-opacity: 0.35; } .register { fill: #d55e00; }
.cache { fill: #e69f00; fill-opacity: 0.45; } .memory { fill: #999999; fill-opacity: 0.45; }
@media (prefers-color-scheme: dark) { svg { color: #d0d7de; } }
"""


def constant(file: str, name: str) -> int:
    """A `constexpr` of a kernel, which is a number or a number shifted."""
    text = (ROOT / "csrc" / file).read_text()
    match = re.search(rf"constexpr \w+ {name} = (?:int64_t\()?(\d+)\)?(?: << (\d+))?;", text)
    assert match is not None, f"{name} in {file}"
    return int(match[1]) << int(match[2] or 0)


FEW_CLASSES = constant("cpu/kernels.h", "kMaxTransposedClasses")
BATCH_CLASSES = constant("cpu/kernels.h", "kMaxBatchClasses")
BLOCK_CLASSES = constant("cpu/row_loop.h", "kPageClasses")
STASH_MIB = constant("cpu/cross_entropy_rows.h", "kMaxStashedBytes") >> 20
POSITIONS = constant("cpu/kernels.h", "kTilePositions")
CHUNK_CLASSES = FEW_CLASSES
FLOAT_BYTES = 4


class Picture:
    def __init__(self, width: int, height: int) -> None:
        self.parts = [
            '<svg xmlns="http://www.w3.org/2000/svg" '
            f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
            f"<style>{STYLE}</style>",
        ]

    def box(self, x: float, y: float, width: float, height: float, kind: str = "box") -> None:
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" class="{kind}"/>')

    def cells(self, x: float, y: float, columns: int, rows: int, size: float) -> None:
        for row in range(rows):
            for column in range(columns):
                self.box(x + column * size, y + row * size, size, size, "cell")

    def text(self, x: float, y: float, text: str, kind: str = "small") -> None:
        escaped = text.replace("&", "&amp;").replace("<", "&lt;")
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{escaped}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        self.parts.append(f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="arrow"/>')

    def arrow(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Horizontal or vertical."""
        self.line(x1, y1, x2, y2)
        along_x, along_y = ((x2 > x1) - (x2 < x1)) * 7, ((y2 > y1) - (y2 < y1)) * 7
        across_x, across_y = along_y / 2, along_x / 2
        points = [(x2, y2), (x2 - along_x + across_x, y2 - along_y + across_y)]
        points.append((x2 - along_x - across_x, y2 - along_y - across_y))
        self.parts.append(f'<path class="head" d="M {" L ".join(f"{x:g} {y:g}" for x, y in points)} Z"/>')

    def drawing(self) -> str:
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def layouts() -> Picture:
    """The three ways in which the classes of a position lie in memory, and along what a register goes."""
    picture = Picture(910, 300)
    size, lanes = 11, 8

    picture.text(10, 20, "Classes side by side, and many", "bold")
    picture.text(10, 38, f"(N, C) with more than {FEW_CLASSES} classes")
    picture.box(10, 60 + size, 24 * size, size, "row")
    picture.box(10, 60 + size, lanes * size, size, "register")
    picture.cells(10, 60, 24, 6, size)
    picture.text(10, 145, "one row after the other in memory")
    picture.arrow(10, 158, 10 + 24 * size, 158)
    picture.text(10, 178, "classes: a register goes along them")
    picture.text(10, 212, f"Beyond {BATCH_CLASSES} classes a row at a time;")
    picture.text(10, 228, "below, as many rows together as")
    picture.text(10, 244, "a register has lanes.")

    left = 330
    picture.text(left, 20, "Classes side by side, and few", "bold")
    picture.text(left, 38, f"(N, C) with up to {FEW_CLASSES} classes")
    picture.box(left, 60, 5 * size, lanes * size, "row")
    picture.box(left + 2 * size, 60, size, lanes * size, "register")
    picture.cells(left, 60, 5, 10, size)
    picture.arrow(left + 5 * size + 14, 60, left + 5 * size + 14, 60 + 10 * size)
    picture.text(left + 5 * size + 24, 100, "rows: a register")
    picture.text(left + 5 * size + 24, 116, "goes along them")
    picture.text(left, 212, "Squares of rows and classes are turned in")
    picture.text(left, 228, "registers, on the way in and on the way out.")

    left = 620
    picture.text(left, 20, "Classes far apart", "bold")
    picture.text(left, 38, "(N, C, H, W): a plane for each class")
    for plane in range(4):
        x, y = left + 6 * plane, 60 + 26 * plane
        picture.box(x + 5 * size, y, lanes * size, size, "row")
        if plane == 1:
            picture.box(x + 5 * size, y, lanes * size, size, "register")
        picture.cells(x, y, 20, 1, size)
        picture.text(x + 20 * size + 6, y + 9, f"class {plane}")
    picture.arrow(left, 168, left + 20 * size, 168)
    picture.text(left, 188, "positions: a register goes along them")
    picture.text(left, 212, f"A tile of {POSITIONS} positions of every class,")
    picture.text(left, 228, "read in runs as it lies.")

    picture.box(10, 262, 12, 12, "register")
    picture.text(28, 272, "a register (here of eight numbers)")
    picture.box(240, 262, 12, 12, "row")
    picture.text(
        258,
        272,
        "what is computed together with it.    channels_last images are rows, in a view: one of the first two.",
    )
    return picture


def row_sweep() -> Picture:
    """A long row: read once in blocks, each relative to the largest logit so far."""
    picture = Picture(900, 330)
    left, width, blocks = 190, 170, 4
    maxima = ["m₁", "m₁", "m₃", "m₃"]

    def bar(y: float, kind: str, texts: list[str]) -> None:
        for block, text in enumerate(texts):
            picture.box(left + block * width, y, width, 30, kind)
            picture.box(left + block * width, y, width, 30)
            picture.text(left + (block + 0.5) * width, y + 19, text, "middle")

    bar(34, "memory", [f"block {block + 1}" for block in range(blocks)])
    picture.text(10, 46, "logits: memory,", "bold")
    picture.text(10, 63, "read once", "bold")
    picture.text(left, 22, f"a block: {BLOCK_CLASSES} classes, a page of float32, in the first-level cache")

    picture.arrow(left + 0.5 * width, 64, left + 0.5 * width, 122)
    picture.text(left + 0.5 * width + 8, 84, "exponential, sum,")
    picture.text(left + 0.5 * width + 8, 99, "the block's own maximum")
    picture.arrow(left + 2.1 * width, 78, left + 2.1 * width, 66)
    picture.text(left + 2.1 * width + 8, 79, "asked for while block 1 is computed")
    picture.arrow(left + 2.5 * width, 86, left + 2.5 * width, 122)
    picture.text(left + 2.5 * width + 8, 101, "a larger logit: swept again")

    bar(122, "cache", [f"exp(x - {maximum})" for maximum in maxima])
    picture.text(10, 134, "stash: cache,", "bold")
    picture.text(10, 151, f"up to {STASH_MIB} MiB a row", "bold")

    bar(196, "row", ["exp(m₁ - m)", "exp(m₁ - m)", "1", "1"])
    picture.text(10, 208, "the end of the row:", "bold")
    picture.text(10, 225, "one factor a block", "bold")
    picture.text(left, 180, "m = m₃, S = sum of each block's sum · its factor,  loss = log S - (x at the target - m)")

    for block in range(blocks):
        picture.arrow(left + (block + 0.5) * width, 226, left + (block + 0.5) * width, 260)
    picture.text(left + 0.5 * width + 8, 246, "· factor / S")
    bar(260, "memory", ["p", "p", "p", "p"])
    picture.text(10, 272, "gradient: memory,", "bold")
    picture.text(10, 289, "written once", "bold")
    picture.text(
        left,
        312,
        "At the target p - 1 is written last, from the sum of the other classes: a confident row keeps its digits.",
    )
    return picture


def tiles() -> Picture:
    """A tile of positions, however the classes lie: from memory into the tile buffer and back."""
    picture = Picture(900, 330)

    picture.text(10, 20, "(N, C, H, W)", "bold")
    for plane in range(3):
        picture.box(10, 32 + 22 * plane, 200, 14, "memory")
        picture.box(60, 32 + 22 * plane, 70, 14, "row")
        picture.box(10, 32 + 22 * plane, 200, 14)
    picture.text(10, 112, f"runs of {POSITIONS * FLOAT_BYTES} bytes, one a class")
    picture.arrow(220, 62, 318, 62)
    picture.text(232, 54, "as it lies")

    picture.text(10, 160, f"(N, C), up to {FEW_CLASSES} classes", "bold")
    picture.box(10, 172, 5 * 11, 8 * 11, "row")
    picture.cells(10, 172, 5, 8, 11)
    picture.text(10, 278, f"{POSITIONS} rows, dense in memory")
    picture.line(75, 215, 270, 215)
    picture.line(270, 215, 270, 120)
    picture.arrow(270, 120, 318, 120)
    picture.text(85, 207, "squares turned in registers")

    picture.text(330, 20, "tile buffer: first-level cache", "bold")
    picture.box(330, 32, 250, 120, "cache")
    picture.box(330, 32, 250, 120)
    picture.box(380, 32, 24, 120, "register")
    picture.text(330, 170, f"→ {POSITIONS} positions")
    picture.text(330, 188, f"↓ classes, {CHUNK_CLASSES} at a time: more come in chunks,")
    picture.text(342, 204, "and are read again for the gradient")

    picture.arrow(590, 90, 640, 90)
    picture.text(650, 20, "one number a position", "bold")
    for line, name in enumerate(("maximum", "sum of exponentials", "logit and exponential of the target", "loss")):
        picture.box(650, 32 + 26 * line, 230, 18, "row")
        picture.text(656, 45 + 26 * line, name)
    picture.text(650, 152, "no sums over lanes: a position is a lane")

    picture.text(
        330, 246, "For every register of positions: the maximum over the classes; then exponentials, left in the"
    )
    picture.text(
        330, 262, "buffer, and their sum. Logarithm and loss are computed for a register of positions at once."
    )
    picture.text(330, 286, "The gradient is made of the exponentials in the buffer and goes back as the logits came:")
    picture.text(330, 302, "in runs, or by squares. Memory is read once and written once.")
    return picture


PICTURES = {"layouts.svg": layouts, "row_sweep.svg": row_sweep, "tiles.svg": tiles}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw().drawing())
