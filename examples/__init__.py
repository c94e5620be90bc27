"""Trainings on real data with torch's losses and with fused_losses, side by side: `python -m examples`.

Every program here is complete in itself (`python -m examples.digits`) and shows the one line a user changes.
"""

import os

# Both are read when torch is loaded, so they stand before every import of it.

# OpenMP's threads sleep while they wait. By default they spin, which on a machine that is busy with other work makes
# a small tensor wait for the scheduler: its loss then seems to take milliseconds, torch's as well as the fused one.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The memory of a loss is read off torch's profiler, which otherwise announces on stderr that it starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
