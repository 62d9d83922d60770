"""`make bench`: every measurement, one after another, on an otherwise idle machine (about an hour)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = (
    ["bench_peers.py"],
    ["bench_grokking.py"],
    ["bench_tracking.py", "--postgres"],
    ["bench_scale.py"],
    ["bench_results.py"],
    ["bench_pages.py"],
    ["bench_cluster.py"],
)

here = Path(__file__).resolve().parent
failed = 0
for command in BENCHMARKS:
    print(f"\n== {' '.join(command)}", flush=True)
    failed |= subprocess.run([sys.executable, here / command[0], *command[1:]], check=False).returncode
print("\n== -m tests.benchmarks.boundary", flush=True)
failed |= subprocess.run([sys.executable, "-m", "tests.benchmarks.boundary"], check=False).returncode
raise SystemExit(failed)
