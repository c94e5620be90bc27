"""What a run leaves behind: the JSON's layout, and the ratios that every table and plot derives from it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal, TypedDict

Pass = Literal["forward", "forward_backward"]
PASSES: tuple[Pass, ...] = ("forward", "forward_backward")
PASS_TITLES: dict[Pass, str] = {"forward": "forward", "forward_backward": "forward + backward"}

PEER_NAMES = ("liger-kernel", "quack-kernels", "flash-attn", "apex")  # `peers.py`
CONTENDER_NAMES = ("eager", "compile", "fused", "fused compiled", "fused in-place", *PEER_NAMES)

# What the floor of a device is: `floor.py`.
FLOORS: dict[str, dict[Pass, str]] = {
    "cpu": {"forward": "warm read", "forward_backward": "warm copy"},
    "cuda": {"forward": "device copy", "forward_backward": "device copy"},
}


class Summary(TypedDict):
    """The samples of one task. Times are seconds a call."""

    median_s: float
    q25_s: float
    q75_s: float
    minimum_s: float
    samples: int
    calls_per_sample: int


class ContenderResult(TypedDict):
    times: dict[Pass, Summary]
    # Beyond the inputs; with the gradient. None where it cannot be measured.
    peak_extra_bytes: dict[Pass, int | None]


class CaseResult(TypedDict):
    case: str
    loss: str
    shape: list[int]
    dtype: str
    variant: str
    device: str
    allocator: str
    threads: int
    logits_bytes: int
    inputs_in_rotation: int
    bytes_moved: dict[Pass, int]  # by a loss that moves no more than it must
    floor: dict[Pass, Summary]
    contenders: dict[str, ContenderResult]
    absent: dict[str, str]  # peers that did not take part, and why


class Failure(TypedDict):
    case: str
    allocator: str
    threads: int | None
    error: str


class Report(TypedDict):
    machine: dict[str, Any]
    command: list[str]
    quick: bool
    results: list[CaseResult]
    failures: list[Failure]


def save(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def load(path: Path) -> Report:
    report: Report = json.loads(path.read_text())
    return report


def contenders_present(report: Report) -> list[str]:
    """Those that took part in at least one case, in the order of all tables and plots."""
    return [name for name in CONTENDER_NAMES if any(name in result["contenders"] for result in report["results"])]


def median_seconds(result: CaseResult, contender: str, which: Pass) -> float | None:
    """The contender's median, None if it did not take part."""
    entry = result["contenders"].get(contender)
    summary = entry["times"].get(which) if entry else None
    return summary["median_s"] if summary else None


def rivals(result: CaseResult, which: Pass) -> list[str]:
    """Whom fused_losses must be faster than: torch's two ways, and the peers that took part."""
    return ["eager", "compile", *(name for name in PEER_NAMES if takes_part(result, name, which))]


def fused_speedup(result: CaseResult, which: Pass, *rivals: str) -> float | None:
    """How many times faster fused_losses is than the best of the rivals; None if one of them is missing."""
    fused = median_seconds(result, "fused", which)
    seconds = [median_seconds(result, rival, which) for rival in rivals]
    present = [second for second in seconds if second is not None]
    if fused is None or len(present) < len(rivals):
        return None
    return min(present) / fused


def times_floor(result: CaseResult, contender: str, which: Pass) -> float | None:
    """The contender's median as a multiple of the floor's."""
    seconds = median_seconds(result, contender, which)
    return None if seconds is None else seconds / result["floor"][which]["median_s"]


def gigabytes_per_second(result: CaseResult, contender: str, which: Pass) -> float | None:
    """The bytes that the loss must move over the contender's median; `floor` is a contender here."""
    seconds = result["floor"][which]["median_s"] if contender == "floor" else median_seconds(result, contender, which)
    return None if seconds is None else result["bytes_moved"][which] / seconds / 1e9


def absences(report: Report) -> dict[tuple[str, str], int]:
    """Each peer and reason, and in how many cases the peer was absent for it."""
    return Counter(absence for result in report["results"] for absence in result.get("absent", {}).items())


def peak_extra_bytes(result: CaseResult, contender: str, which: Pass) -> int | None:
    """The contender's peak, None if it did not take part or its peak could not be measured."""
    entry = result["contenders"].get(contender)
    return entry["peak_extra_bytes"].get(which) if entry else None


def takes_part(result: CaseResult, contender: str, which: Pass) -> bool:
    entry = result["contenders"].get(contender)
    return entry is not None and which in entry["times"]
