"""Kernels' names as the sources have them, and as one sorts them."""

import re
import subprocess
from collections.abc import Iterable

NAMESPACES = re.compile(r"(?:\w+::)*\(anonymous namespace\)::|fused_losses::(?:\w+::)*")


def demangle(names: Iterable[str], demangler: str) -> dict[str, str]:
    """Short names by mangled names: without namespaces, result and parameters."""
    mangled = list(names)
    finished = subprocess.run([demangler, *mangled], check=True, capture_output=True, text=True)
    return {name: short_name(line) for name, line in zip(mangled, finished.stdout.splitlines(), strict=True)}


def short_name(demangled: str) -> str:
    """``kernel<Half, Rows<2>>`` of ``void fused_losses::kernel<fused_losses::Half, fused_losses::Rows<2> >(int)``."""
    name = NAMESPACES.sub("", demangled).removeprefix("void ").replace("> >", ">>")
    return name[: name.rindex("(")] if name.endswith(")") else name


def natural_order(name: str) -> list[tuple[bool, int, str]]:
    """Numbers in a name by their value."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]
