"""`python -m tests.benchmarks.boundary`: searches for phase boundaries on problems with known truth.

Batches of 32 after 64 scrambled-Sobol points; every map is drawn by the same classifier. `--quick` takes two problems,
one seed, 256 trials and the searches of this project and the margin. The peers `adaptive` and `optuna` are needed for
theirs alone (`pip install adaptive`); one that is absent is left out and named.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import sys
from pathlib import Path

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before numpy is imported: one thread a process, a process a core

NEEDS = {"LearnerND": "adaptive", "TPE": "optuna"}


def main(argv: list[str] | None = None) -> int:
    from tests.benchmarks import harness
    from tests.benchmarks.boundary.peers import SEARCHES
    from tests.benchmarks.boundary.problems import NAMES
    from tests.benchmarks.boundary.runs import one
    from tests.benchmarks.boundary.tables import report

    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.boundary", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two problems, one seed, 256 trials, without the peers")
    parser.add_argument("--problems", default=NAMES, help="letters, default %(default)s")
    parser.add_argument("--seeds", default="100-104", help="first-last; 0-9 are for tuning, default %(default)s")
    parser.add_argument("--searches", default="", help=f"comma-separated, of grid,{','.join(SEARCHES)}; default all")
    parser.add_argument("--budget", type=int, default=512, help="trials of a search, default %(default)s")
    parser.add_argument("--grid-budget", type=int, default=3136, help="trials of the largest grid, default %(default)s")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--raw", type=Path, default=Path(".bench/boundary.json"), help="where runs are kept")
    parser.add_argument("--reprint", action="store_true", help="print the tables of --raw and run nothing")
    asked = parser.parse_args(argv)
    if asked.quick:
        asked.problems, asked.seeds, asked.budget = "AC", "0-0", 256
        asked.searches = asked.searches or "phasefront,margin"
    kept = json.loads(asked.raw.read_text()) if asked.raw.exists() else []
    if not asked.reprint:
        searches = asked.searches.split(",") if asked.searches else ["grid", *SEARCHES]
        unknown = sorted(set(searches) - {"grid", *SEARCHES}) + sorted(set(asked.problems) - set(NAMES))
        if unknown:
            parser.error(f"not known: {', '.join(unknown)}; searches are grid, {', '.join(SEARCHES)}, problems {NAMES}")
        for search, package in NEEDS.items():
            if search in searches and importlib.util.find_spec(package) is None:
                searches.remove(search)
                print(f"{search} is left out: pip install {package}", file=sys.stderr)
        first, _, last = asked.seeds.partition("-")
        seeds = range(int(first), int(last or first) + 1)
        jobs = [
            (search, problem, seed, asked.grid_budget if search == "grid" else asked.budget)
            for seed in seeds
            for problem in asked.problems
            for search in searches
        ]
        asked.raw.parent.mkdir(parents=True, exist_ok=True)
        with multiprocessing.get_context("spawn").Pool(asked.processes) as pool:
            for run in pool.imap_unordered(one, jobs):
                same = (run["search"], run["problem"], run["seed"])
                kept = [old for old in kept if (old["search"], old["problem"], old["seed"]) != same] + [run]
                asked.raw.write_text(json.dumps(kept))
                last_error = run["error"][max(run["error"])]
                print(*same, f"{100 * last_error:.2f}% at {max(run['error'])}", file=sys.stderr, flush=True)
    print(f"{harness.machine()}; {harness.versions('numpy', 'scipy', 'optuna', 'adaptive')}\n")
    print(report(kept))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
