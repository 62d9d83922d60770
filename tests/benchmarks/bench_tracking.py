"""Rows and runs a second into MLflow's tables: MLflow's own client against this project's tracker.

    python tests/benchmarks/bench_tracking.py [--rows N] [--runs N] [--repeats N] [--postgres]

All in one process, on one machine, pinned to one core where the system allows it (a PostgreSQL server too).
- "MLflow client" writes as its documentation recommends: `log_batch` with 1,000 metrics a call, all of
  one run; and for a run `create_run` (with the tracker's tags), `log_batch` (with its params, then with
  its observations and result tags), `set_terminated`. This is the best case for the client: the rows of a trial
  are in MLflow only after it has ended.
- "client, live" writes rows in the order in which a pack reports them: ten steps of a trial a call.
- "client, plugin" is the same as "MLflow client" with the URI scheme `phasefront-sqlite:` or `phasefront-postgresql:`.
- "tracker" does begin, record (ten steps of 500 trials a call) and end, as the runner calls them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402

from jobs.job import Params, param  # noqa: E402
from orchestrator.records import CurveRows, Status, TrialResult  # noqa: E402
from orchestrator.tracking import layout  # noqa: E402
from orchestrator.tracking.address import PREFIX, quiet_mlflow  # noqa: E402
from orchestrator.tracking.base import SweepRecord, Tracker  # noqa: E402
from orchestrator.tracking.factory import open_tracker  # noqa: E402
from orchestrator.trial import Trial  # noqa: E402

METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
PACK = 500
"""Trials of a pack, which the runner begins and ends together."""
STEPS_A_REPORT = 10
"""Steps in one progress report of a pack."""
SWEEP = SweepRecord(sweep_id="b" * 32, name="bench", job="bench", resolved_yaml="", thresholds="t")


@dataclass(frozen=True, kw_only=True)
class SixParams(Params):
    """As many parameters as a typical sweep of this project's jobs."""

    a: float = param(0.1, meaning="-")
    b: float = param(0.2, meaning="-")
    c: int = param(3, meaning="-")
    d: int = param(4, meaning="-")
    e: str = param("adamw", meaning="-")
    number: int = param(0, meaning="tells trials apart")


Speed = tuple[float, float]
"""Items a second of wall time, and of CPU time (see `cpu_seconds`)."""


class Clock:
    """Measures from its construction."""

    def __init__(self) -> None:
        self.cpu, self.wall = cpu_seconds(), time.perf_counter()

    def speed(self, items: int) -> Speed:
        wall = time.perf_counter() - self.wall
        return items / wall, items / (cpu_seconds() - self.cpu)


def cpu_seconds() -> float:
    """CPU time of this process and of those it has started (a database server), alive or ended."""
    parent, used = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            number = int(folder.name)
            parent[number] = int(fields[1])
            used[number] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    started = {os.getpid()}
    while more := {number for number, of in parent.items() if of in started} - started:
        started |= more
    return time.process_time() + sum(used.get(number, 0.0) for number in started - {os.getpid()})


def trials(count: int, first: int) -> list[Trial]:
    return [Trial(job="bench", job_version=1, params=SixParams(number=first + n), replicate=0) for n in range(count)]


def results(of: list[Trial]) -> list[TrialResult]:
    return [
        TrialResult(trial_id=t.id, status=Status.FINISHED, phase="grokking", observations={"step": 10.0, "gap": 3.0})
        for t in of
    ]


def tracker_rows(tracker: Tracker, rows: int, first: int) -> Speed:
    """Rows a second of `record`: packs of trials, some steps of each at a time."""
    steps = rows // (PACK * len(METRICS))
    of = trials(PACK, first)
    tracker.begin(of)
    tracker.index([])  # writes what waits
    ids = tuple(t.id for t in of)
    values = np.random.default_rng(0).random((PACK * STEPS_A_REPORT, len(METRICS)))
    clock = Clock()
    written = 0
    for start in range(0, steps, STEPS_A_REPORT):
        count = min(STEPS_A_REPORT, steps - start)
        tracker.record(
            CurveRows(
                trial_ids=ids,
                metrics=METRICS,
                trial=np.repeat(np.arange(PACK, dtype=np.int32), count),
                step=np.tile(np.arange(start, start + count, dtype=np.int64), PACK),
                values=values[: PACK * count] + start,
            )
        )
        written += PACK * count * len(METRICS)
    tracker.index([])
    speed = clock.speed(written)
    tracker.end(results(of))
    tracker.index([])
    return speed


def tracker_runs(tracker: Tracker, runs: int, first: int) -> Speed:
    """Runs a second of `begin` and `end`, in packs."""
    of = trials(runs, first)
    clock = Clock()
    for start in range(0, runs, PACK):
        tracker.begin(of[start : start + PACK])
        tracker.end(results(of[start : start + PACK]))
    tracker.index([])
    return clock.speed(runs)


def client_rows(uri: str, rows: int, first: int) -> Speed:
    """Rows a second of `MlflowClient.log_batch`, 1,000 a call, one run after the other."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(tracking_uri=uri)
    run = client.create_run(experiment(client)).info.run_id
    values = np.random.default_rng(first).random(rows).tolist()
    clock = Clock()
    for start in range(0, rows, 1000):
        step = start // len(METRICS)
        client.log_batch(
            run,
            metrics=[
                Metric(METRICS[n % 4], values[start + n], 1_700_000_000_000 + step + n // 4, step + n // 4)
                for n in range(min(1000, rows - start))
            ],
        )
    return clock.speed(rows)


def client_live(uri: str, rows: int, first: int) -> Speed:
    """Rows a second of the client in the order in which a pack's rows arrive: one call for each trial's steps."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(tracking_uri=uri)
    number = experiment(client)
    runs = [client.create_run(number).info.run_id for _ in range(20)]
    values = np.random.default_rng(first).random(len(METRICS) * STEPS_A_REPORT).tolist()
    clock = Clock()
    written = step = 0
    while written < rows:
        for run in runs:
            batch = [
                Metric(METRICS[n % 4], value, 1_700_000_000_000 + step + n // 4, step + n // 4)
                for n, value in enumerate(values)
            ]
            client.log_batch(run, metrics=batch)
            written += len(batch)
        step += STEPS_A_REPORT
    return clock.speed(written)


def client_runs(uri: str, runs: int, first: int) -> Speed:
    """Runs a second of create_run, log_batch (params, observations), set_terminated."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client = MlflowClient(tracking_uri=uri)
    number = experiment(client)
    clock = Clock()
    for trial, result in zip(of := trials(runs, first), results(of), strict=True):
        tags = dict(layout.trial_tags(trial, SWEEP, "0" * 32))
        run = client.create_run(number, tags=tags).info.run_id
        client.log_batch(run, params=[Param(k, v) for k, v in layout.params(trial)])
        client.log_batch(
            run,
            metrics=[Metric(k, v, 1_700_000_000_000, 0) for k, v in layout.observed_metrics(result.observations)],
            tags=[RunTag(k, v) for k, v in layout.result_tags(result, "t")],
        )
        client.set_terminated(run)
    return clock.speed(runs)


def experiment(client: object) -> str:
    found = client.get_experiment_by_name("bench")  # type: ignore[attr-defined]
    return found.experiment_id if found else client.create_experiment("bench")  # type: ignore[attr-defined]


def table(uri: str, arguments: argparse.Namespace) -> None:
    """Measure one database and print its table. The methods take turns, so that machine load affects all of them."""
    rows, runs = max(4000, arguments.rows // 20), max(50, arguments.runs // 20)
    tracker = open_tracker(uri, experiment="tracker")
    tracker.open_sweep(SWEEP)
    plain, plugin = uri, PREFIX + uri
    ways: dict[str, tuple[Callable[[int], Speed], ...]] = {
        "MLflow client": (partial(client_rows, plain, rows), partial(client_runs, plain, runs)),
        "client, live": (partial(client_live, plain, rows),),
        "client, plugin": (partial(client_rows, plugin, 5 * rows), partial(client_runs, plugin, runs)),
        "tracker": (partial(tracker_rows, tracker, arguments.rows), partial(tracker_runs, tracker, arguments.runs)),
    }
    measured: dict[tuple[str, int], list[Speed]] = {}
    first = iter(range(10**9, 10**12, 10**7))
    for _ in range(arguments.repeats):
        for name, both in ways.items():
            for what, way in enumerate(both):
                measured.setdefault((name, what), []).append(way(next(first)))
    tracker.close()
    for what, title in enumerate(("rows", "runs")):
        base = [statistics.median(speeds) for speeds in zip(*measured["MLflow client", what], strict=True)]
        print(f"{title:16}{'a second: median (min .. max)':>36}{'ratio':>8}{'a CPU second':>36}{'ratio':>8}")
        for name in (name for name, both in ways.items() if what < len(both)):
            line = f"  {name:14}"
            for speeds, client in zip(zip(*measured[name, what], strict=True), base, strict=True):
                middle = statistics.median(speeds)
                line += f"{f'{middle:,.0f} ({min(speeds):,.0f} .. {max(speeds):,.0f})':>36}{middle / client:>8.1f}"
            print(line)


def hardware() -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000, help="metric rows per repetition (default %(default)s)")
    parser.add_argument("--runs", type=int, default=4_000, help="runs per repetition (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--postgres", action="store_true", help="a throw-away PostgreSQL too")
    arguments = parser.parse_args()
    quiet_mlflow("mlflow.store.tracking.sqlalchemy_store")
    import mlflow
    import sqlalchemy

    pinned = ""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        pinned = ", pinned to one core (its PostgreSQL server too)"
    versions = f"mlflow {mlflow.__version__}, SQLAlchemy {sqlalchemy.__version__}, SQLite {sqlite3.sqlite_version}"
    print(f"{hardware()}; Python {platform.python_version()}, {versions}{pinned}")
    print(
        f"{arguments.rows:,} rows, {arguments.runs:,} runs, {arguments.repeats} repetitions; a twentieth for the client"
    )
    with tempfile.TemporaryDirectory() as folder:
        print("\nSQLite")
        table(f"sqlite:///{folder}/mlflow.db", arguments)
    if arguments.postgres:
        from servers import postgres_server

        with postgres_server() as uri:
            print("\nPostgreSQL")
            table(uri, arguments)


if __name__ == "__main__":
    main()
