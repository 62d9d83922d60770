"""Reading results: the table of 100,000 trials, and one metric's curves of 10,000, as a notebook reads them.

`python tests/benchmarks/bench_results.py [--trials N] [--curves N] [--rows N] [--turns N] [--postgres]`. The records
are real: `phasefront run` of the trivial job (trivial_job.py) into a SQLite file, or with `--postgres` into a server
that is started for it. A third sweep has trials of the job `grokking`, with its 50 parameters and made-up observations
that the tracker writes. Each measurement is a process of its own: its imports are stated apart, and `phasefront.load`
with the reading is what the goals are for: 5 s for the table, 10 s for the curves.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import ROOT, goal, machine, run_json, spread, versions

CHUNK = 5_000
OBSERVATIONS = (
    "memorisation_step",
    "generalisation_step",
    "final_train_accuracy",
    "final_test_accuracy",
    "final_test_loss",
)
TRIVIAL = """
name: {name}
job: trivial_job:{function}
axes: {{x: {{scale: linear, from: 0, to: 1, points: {points}}}}}
{fixed}replicates: 10
output: {folder}/{name}
tracking: {{uri: "{uri}", artifacts: "{folder}/artifacts"}}
"""
GROKKING = """
name: {name}
job: grokking
axes:
  weight_decay: {{scale: linear, from: 0, to: 1, points: {side}}}
  learning_rate: {{scale: log, from: 0.001, to: 1, points: {side}}}
fixed: {{model: quadratic_mlp, modulus: 11, width: 40}}
replicates: 2
output: {folder}/{name}
tracking: {{uri: "{uri}", artifacts: "{folder}/artifacts"}}
"""
READ = """
import json, sys, time
began = time.perf_counter()
import pandas, pyarrow, phasefront
started = time.perf_counter()
sweep = phasefront.load(sys.argv[1])
loaded = time.perf_counter()
table = sweep.trials() if sys.argv[2] == "trials" else sweep.curves([sys.argv[2]])
read = time.perf_counter()
print(json.dumps({"start": started - began, "load": loaded - started, "read": read - loaded,
                  "rows": len(table), "cpu": time.process_time()}))
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}


def run(file: Path) -> None:
    """Run a sweep, as a user does."""
    command = [sys.executable, "-m", "orchestrator", "run", str(file), "--quiet", "--no-map"]
    subprocess.run(command, cwd=file.parent, env=environment(), check=True, stdout=subprocess.DEVNULL)


def record_made_up(file: Path) -> None:
    """Record all trials of a sweep of `grokking`, with observations that are made up."""
    import phasefront
    from jobs.job import Censored
    from orchestrator.commands.wiring import sweep_record
    from orchestrator.records import Status, TrialResult
    from orchestrator.tracking.factory import open_tracker

    sweep = phasefront.load(file).sweep
    tracker = open_tracker(sweep.tracking.uri, experiment=sweep.tracking.experiment)
    tracker.open_sweep(sweep_record(sweep))
    trials = sweep.trials()
    for start in range(0, len(trials), CHUNK):
        part = trials[start : start + CHUNK]
        tracker.begin(part)
        results = []
        for number, trial in enumerate(part):
            observed = {
                name: Censored(1e4) if name.endswith("_step") and number % 3 == 0 else number / 7
                for name in OBSERVATIONS
            }
            phase = ("grokking", "memorization")[number % 2]
            results.append(TrialResult(trial.id, Status.FINISHED, phase, observed))
        tracker.end(results)
    tracker.end_sweep("FINISHED", {})
    tracker.close()


def measure(what: str, file: Path, read: str, turns: int, seconds: float) -> None:
    """Read in `turns` fresh processes, and print the times."""
    command = [sys.executable, "-c", READ, str(file), read]
    done = [run_json(command, env=environment(), cwd=file.parent) for _ in range(turns)]
    part = {name: [float(each[name]) for each in done] for name in ("start", "load", "read", "cpu")}
    both = [load + rest for load, rest in zip(part["load"], part["read"], strict=True)]
    print(
        f"{what}, {done[0]['rows']:,} rows: load and read {spread(both)} s = load {spread(part['load'])} s + ", end=""
    )
    print(f"read {spread(part['read'])} s; imports before {spread(part['start'])} s; all processor time ", end="")
    print(f"{spread(part['cpu'])} s", flush=True)
    print(goal(f"{seconds:g} s over load and read", seconds / statistics.median(both), 1), flush=True)


@contextlib.contextmanager
def address(folder: Path, *, postgres: bool) -> Iterator[str]:
    """Of an empty record."""
    if not postgres:
        yield f"sqlite:///{folder}/mlflow.db"
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from servers import postgres_server

    with postgres_server() as uri:
        yield uri


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--curves", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--postgres", action="store_true")
    arguments = parser.parse_args()
    print(f"reading results: {machine()}; {versions('pandas', 'pyarrow', 'sqlalchemy')}", flush=True)
    with tempfile.TemporaryDirectory() as name, address(Path(name), postgres=arguments.postgres) as uri:
        folder = Path(name)
        table, curves, wide = (folder / f"{each}.yaml" for each in ("table", "curves", "wide"))
        common = {"folder": folder, "uri": uri}
        table.write_text(
            TRIVIAL.format(name="table", function="train", points=arguments.trials // 10, fixed="", **common)
        )
        fixed = f"fixed: {{rows: {arguments.rows}}}\n"
        curves.write_text(
            TRIVIAL.format(name="curves", function="curve", points=arguments.curves // 10, fixed=fixed, **common)
        )
        wide.write_text(GROKKING.format(name="wide", side=round((arguments.trials / 2) ** 0.5), **common))
        run(table)
        measure("table of the trivial job", table, "trials", arguments.turns, 5)
        run(curves)
        measure("curves of one metric of the trivial job", curves, "loss", arguments.turns, 10)
        record_made_up(wide)
        measure("table of grokking", wide, "trials", arguments.turns, 5)


if __name__ == "__main__":
    main()
