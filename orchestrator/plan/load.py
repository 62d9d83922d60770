"""How much of its cores this machine has to give now."""

from __future__ import annotations

import statistics
import subprocess
import sys

SPIN_S = 0.5
"""How long the processes spin."""
_SPIN = f"""
import os, sys, time
for _ in range(int(sys.argv[1]) - 1):
    if os.fork() == 0:
        break
wall, work = time.perf_counter(), time.process_time()
while time.perf_counter() - wall < {SPIN_S}:
    pass
os.write(1, b"%f\\n" % ((time.perf_counter() - wall) / max(time.process_time() - work, 1e-3)))
"""


def slowdown(at_once: int) -> float:
    """By what factor `at_once` busy processes are slower than with a core each; 1 where nobody else computes.

    Measured by as many processes in half a second: other programs, their priorities and a container's
    limits all count. 1 too where it cannot be measured.
    """
    # In one session of their own, as Ray's workers are: Linux shares the cores among sessions first.
    command = [sys.executable, "-S", "-E", "-c", _SPIN, str(at_once)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, start_new_session=True)
        return max(1.0, statistics.fmean(map(float, done.stdout.split())))
    except (OSError, ValueError, subprocess.SubprocessError):
        return 1.0
