"""What importing fused_losses costs on top of importing torch.

python -m benchmarks.import_time
"""

import statistics
import subprocess
import sys

from rich.console import Console
from rich.progress import track

ROUNDS = 15
PROGRAM = """
import time
import torch
import torch.nn.functional
start = time.perf_counter()
import fused_losses
print(time.perf_counter() - start)
"""


def import_seconds() -> float:
    """One import in a process of its own, torch being there already."""
    result = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    return float(result.stdout)


def main() -> None:
    seconds = [import_seconds() for _ in track(range(ROUNDS), description="imports")]
    quartiles = statistics.quantiles(seconds, n=4)
    Console().print(
        f"import fused_losses after import torch: {quartiles[1] * 1e3:.0f} ms, median of {ROUNDS} processes "
        f"(quartiles {quartiles[0] * 1e3:.0f} to {quartiles[2] * 1e3:.0f} ms)"
    )


if __name__ == "__main__":
    main()
