"""Kill the workers and the driver of a sweep of long packs: `python -m tests.benchmarks.checkpoints --kills 20`.

Prints how much training each loss cost, and whether the record is that of the undisturbed sweep; exit code 1 if not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from tests.killing import killed_processes, killed_run

WAIT_S = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between two checkpoints")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training of each of the four trials")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", action="store_true", help="without Ray: the worker is a plain process")
    arguments = parser.parse_args()
    run = killed_processes if arguments.processes else killed_run
    with tempfile.TemporaryDirectory(prefix="pf-kills-") as folder:
        found = run(
            Path(folder),
            kills=arguments.kills,
            steps=round(arguments.seconds / WAIT_S),
            wait_s=WAIT_S,
            interval_s=arguments.interval,
            seed=arguments.seed,
        )
    lost = sorted(found.lost_s)
    kills = ", ".join(f"{count} of a {kind}" for kind, count in found.kills.items())
    print(f"{sum(found.kills.values())} kills ({kills}) in {found.seconds:.0f} s; interval {found.interval_s:g} s")
    if lost:
        print(
            f"training done again after {len(lost)} losses: median {statistics.median(lost):.2f} s, "
            f"most {lost[-1]:.2f} s"
        )
    print(f"checkpoints left: {len(found.files)}; differences from the undisturbed sweep: {len(found.wrong)}")
    print("\n".join(found.wrong))
    return 1 if found.wrong or found.files else 0


if __name__ == "__main__":
    sys.exit(main())
