"""How many workers one driver can feed: a simulated cluster on a virtual clock, a real driver and record.

`python tests/benchmarks/bench_cluster.py [--workers 16,256,4096] [--trial-s 2] [--packs-per-worker 8]`. Packs
take the time they are said to take and cost nothing; the driver's loop, its planning and its MLflow record
(SQLite) are real and take real time. The driver is saturated where it is busy all the time and workers wait.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from harness import ROOT, machine, versions

REPORTS, METRICS = 40, ("train_loss", "train_error", "test_loss", "test_error")


def simulate(workers: int, models: int, pack_s: float, packs: int) -> dict[str, float]:
    """One sweep of workers * packs packs of `models` trials; virtual seconds and shares."""
    from jobs.catalogue import load_job
    from jobs.double_descent.params import DoubleDescentParams
    from orchestrator.dispatch.base import PackProgress, PackTask
    from orchestrator.plan.calibration import Calibration
    from orchestrator.plan.pack import Pack
    from orchestrator.plan.planner import Planner
    from orchestrator.progress import for_stream
    from orchestrator.records import CurveRows, Status, TrialResult
    from orchestrator.runner import Runner
    from orchestrator.search.grid import GridSampler
    from orchestrator.tracking.base import SweepRecord
    from orchestrator.tracking.factory import open_tracker
    from orchestrator.trial import Trial
    from tests.simulation.dispatcher import SimulatedDispatcher, VirtualClock

    class FixedPacks(Planner):
        """Packs of exactly `models` trials: the subject is the driver, not the plan."""

        def plan(self, trials, *, workers):  # type: ignore[no-untyped-def]
            return [Pack(trials=tuple(trials[i : i + models]), seconds=pack_s) for i in range(0, len(trials), models)]

    params = DoubleDescentParams(width=16, steps=2000, curve_points=REPORTS)
    trials = [
        Trial(job="double_descent", job_version=1, params=params, replicate=i) for i in range(workers * packs * models)
    ]
    steps = np.unique(np.rint(np.geomspace(1, 2000, REPORTS)).astype(np.int64))
    random = np.random.default_rng(0)

    def results(task: PackTask) -> PackProgress:
        count = len(task.trial_ids)
        rows = CurveRows(
            trial_ids=task.trial_ids,
            metrics=METRICS,
            trial=np.repeat(np.arange(count, dtype=np.int32), len(steps)),
            step=np.tile(steps, count),
            values=random.random((count * len(steps), len(METRICS))),
        )
        seen = {f"final_{name}": 0.5 for name in METRICS}
        ends = tuple(
            TrialResult(trial_id=i, status=Status.FINISHED, phase="underfitted", observations=seen)
            for i in task.trial_ids
        )
        return PackProgress(pack_id=task.pack_id, rows=rows, results=ends)

    # Packs end at different times, by up to a fifth: a tie of all of them would flatter no one.
    lengths: dict[str, float] = {}

    def seconds(task: PackTask) -> float:
        return lengths.setdefault(task.pack_id, pack_s * (0.9 + 0.2 * random.random()))

    with tempfile.TemporaryDirectory() as folder:
        tracker = open_tracker(f"sqlite:///{folder}/mlflow.db", experiment="simulation", artifacts=None)
        job = load_job("double_descent")
        thresholds = job.Thresholds()
        tracker.open_sweep(
            SweepRecord(sweep_id="0" * 32, name="simulation", job="double_descent", resolved_yaml="", thresholds="0")
        )
        clock = VirtualClock()
        pool = SimulatedDispatcher(workers=workers, seconds=seconds, results=results, clock=clock)
        summary = Runner(
            job_name="double_descent",
            planner=FixedPacks(job_name="double_descent", job=job, calibration=Calibration(), memory_budget_bytes=1e12),
            sampler=GridSampler(trials),
            tracker=tracker,
            pool=lambda: pool,
            progress=for_stream(Path("/dev/null").open("w"), quiet=True),  # noqa: SIM115
            thresholds=thresholds,
            fingerprint="0",
            clock=clock,
        ).run()
        tracker.close()
    return {
        "trials": len(trials),
        "trials_per_s": summary.done / summary.seconds,
        "driver_busy": clock.worked_s / clock(),
        "workers_busy": pool.busy_s / (workers * summary.seconds),
        "rows_per_s": summary.done * len(steps) * len(METRICS) / summary.seconds,
    }


def main() -> None:
    import sys

    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="16,64,256,1024,4096")
    parser.add_argument("--models", type=int, default=8, help="trials of a pack")
    parser.add_argument("--pack-s", type=float, default=16.0, help="seconds of a pack (2 s a trial: see bench_peers)")
    parser.add_argument("--packs-per-worker", type=int, default=4)
    arguments = parser.parse_args()
    print(
        f"simulated cluster, packs of {arguments.models} trials in {arguments.pack_s:g} s, {REPORTS} reports of "
        f"{len(METRICS)} metrics a trial; {machine()}; {versions('mlflow', 'sqlalchemy')}"
    )
    print(f"{'workers':>8} {'trials':>8} {'trials/s':>9} {'rows/s':>9} {'workers busy':>13} {'driver busy':>12}")
    for workers in map(int, arguments.workers.split(",")):
        seen = simulate(workers, arguments.models, arguments.pack_s, arguments.packs_per_worker)
        print(
            f"{workers:8} {seen['trials']:8.0f} {seen['trials_per_s']:9.1f} {seen['rows_per_s']:9.0f} "
            f"{seen['workers_busy']:12.1%} {seen['driver_busy']:11.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
