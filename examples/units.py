"""Numbers as text, in the unit in which they are easy to read."""


def seconds_text(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.2f} ms" if seconds < 10e-3 else f"{seconds * 1e3:.0f} ms"


def bytes_text(count: float) -> str:
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.1f} MB" if count < 100e6 else f"{count / 1e6:.0f} MB"


def ratio_text(torch: float, fused: float) -> str:
    return f"{torch / fused:.1f}x"
