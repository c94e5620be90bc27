"""How numbers are written in tables: the terminal's and the pages'."""

from benchmarks.results import CaseResult, Pass, peak_extra_bytes, takes_part

ABSENT = "-"


def milliseconds(seconds: float | None) -> str:
    """Three significant digits, in ms."""
    if seconds is None:
        return ABSENT
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def ratio(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:.{0 if value >= 99.5 else 1 if value >= 0.995 else 2}f}x"


def percentage_of_floor(times_floor: float | None) -> str:
    """The speed against the floor's."""
    return ABSENT if times_floor is None else f"{1 / times_floor:.0%}"


def gigabytes(speed: float | None) -> str:
    """GB/s (10^9 bytes) as a whole number, small ones with two digits."""
    if speed is None:
        return ABSENT
    return f"{speed:.0f}" if speed >= 9.95 else f"{speed:.2g}"


def peak_megabytes(result: CaseResult, contender: str, which: Pass) -> str:
    if not takes_part(result, contender, which):
        return ABSENT
    count = peak_extra_bytes(result, contender, which)
    return "n/a" if count is None else megabytes(count)


def megabytes(count: int) -> str:
    """Bytes in MB (10^6): the unit in which the shapes of the grid are easy to check by hand."""
    value = count / 1e6
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.01 else "< 0.01"
