"""Reading results: the table of 100,000 trials, and one metric's curves of 10,000, as a notebook reads them.

`python tests/benchmarks/bench_results.py [--trials N] [--curves N] [--steps N] [--turns N]`. The record is a SQLite
file with trials of the job `grokking` (all its parameters, five observations; two metrics at `--steps` steps for the
trials with curves), written by the tracker with made-up values. Goals: the table in less than 5 s, the curves in less
than 10 s, both after `phasefront.load`, whose time is printed too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from harness import goal, machine, spread, timed, versions

import phasefront
from jobs.job import Censored
from orchestrator.commands.wiring import sweep_record
from orchestrator.records import CurveRows, Status, TrialResult
from orchestrator.tracking.factory import open_tracker
from orchestrator.trial import Trial

CHUNK = 5_000
METRICS = ("train_accuracy", "test_accuracy")
OBSERVATIONS = (
    "memorisation_step",
    "generalisation_step",
    "final_train_accuracy",
    "final_test_accuracy",
    "final_test_loss",
)


def sweep_of(folder: Path, name: str, trials: int) -> phasefront.SweepResults:
    """A grid of about so many trials, two replicates, whose record is a file in the folder."""
    side = round((trials / 2) ** 0.5)
    axes = {
        "weight_decay": {"scale": "linear", "from": 0.0, "to": 1.0, "points": side},
        "learning_rate": {"scale": "log", "from": 0.001, "to": 1.0, "points": side},
    }
    return phasefront.load(
        {
            "name": name,
            "job": "grokking",
            "axes": axes,
            "fixed": {"model": "quadratic_mlp", "modulus": 11, "width": 40},
            "replicates": 2,
            "tracking": {"uri": f"sqlite:///{folder}/{name}.db", "artifacts": str(folder / "artifacts")},
            "output": str(folder / name),
        }
    )


def record(sweep: phasefront.SweepResults, steps: Sequence[int]) -> None:
    """Record all trials with made-up observations, and curves with these steps."""
    tracker = open_tracker(sweep.sweep.tracking.uri, experiment="phasefront")
    tracker.open_sweep(sweep_record(sweep.sweep))
    trials = sweep.sweep.trials()
    for start in range(0, len(trials), CHUNK):
        part = trials[start : start + CHUNK]
        tracker.begin(part)
        if len(steps):
            tracker.record(_rows(part, steps))
        tracker.end([_result(trial, number) for number, trial in enumerate(part)])
    tracker.end_sweep("FINISHED", {})
    tracker.close()


def _rows(trials: Sequence[Trial], steps: Sequence[int]) -> CurveRows:
    position = np.tile(np.arange(len(trials), dtype=np.int32), len(steps))
    step = np.repeat(np.array(steps, dtype=np.int64), len(trials))
    values = np.random.default_rng(0).random((len(step), len(METRICS)))
    return CurveRows(trial_ids=tuple(t.id for t in trials), metrics=METRICS, trial=position, step=step, values=values)


def _result(trial: Trial, number: int) -> TrialResult:
    observations = {
        name: Censored(1e4) if name.endswith("_step") and number % 3 == 0 else number / 7 for name in OBSERVATIONS
    }
    return TrialResult(trial.id, Status.FINISHED, ("grokking", "memorization")[number % 2], observations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--curves", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    print(f"reading results: {machine()}; {versions('pandas', 'pyarrow', 'sqlalchemy')}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        table = sweep_of(folder, "table", arguments.trials)
        loaded_s = time.perf_counter() - began
        record(table, [])
        trials = len(table.trials())
        cpu = time.process_time()
        wall = timed(table.trials, arguments.turns)
        cpu_s = (time.process_time() - cpu) / arguments.turns
        print(f"load the sweep of {trials:,} trials: {loaded_s:.2f} s")
        print(f"trials(), {trials:,} rows: {spread(wall)} s; processor time {cpu_s:.2f} s")
        print(goal("5 s over the seconds of the table", 5 / statistics.median(wall), 1))
        curves = sweep_of(folder, "curves", arguments.curves)
        record(curves, np.unique(np.geomspace(1, 10_000, arguments.steps).astype(int)).tolist())
        rows = len(curves.curves([METRICS[1]]))
        cpu = time.process_time()
        wall = timed(lambda: curves.curves([METRICS[1]]), arguments.turns)
        cpu_s = (time.process_time() - cpu) / arguments.turns
        print(f"curves of one metric, {len(curves.sweep.trials()):,} trials, {rows:,} rows: {spread(wall)} s; ", end="")
        print(f"processor time {cpu_s:.2f} s")
        print(goal("10 s over the seconds of the curves", 10 / statistics.median(wall), 1))


if __name__ == "__main__":
    main()
