"""Helpers of the runner tests: trials of the small jobs, a list as sampler, and a call that runs them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from jobs.catalogue import load_job
from jobs.job import as_dict
from orchestrator.dispatch.base import Dispatcher, PackTask
from orchestrator.dispatch.inline import InlineDispatcher
from orchestrator.plan.calibration import Calibration
from orchestrator.plan.planner import Planner
from orchestrator.progress import ProgressDisplay, Silent
from orchestrator.records import CurveRows, Recorded, Status, Summary, TrialResult
from orchestrator.runner import Runner
from orchestrator.search.base import Sampler
from orchestrator.tracking.base import SweepRecord, Tracker
from orchestrator.tracking.memory import MemoryTracker
from orchestrator.trial import Trial

RAMP = "tests.jobs_for_runner:Ramp"
COSTLY = "tests.jobs_for_runner:CostlyRamp"


def ramp(job: str = RAMP, replicate: int = 0, **params: Any) -> Trial:
    return Trial(job=job, job_version=1, params=load_job(job).Params(**params), replicate=replicate)


def task(trials: Sequence[Trial], pack_id: str = "p", **thresholds: Any) -> PackTask:
    return PackTask(
        pack_id=pack_id,
        job=trials[0].job,
        trial_ids=tuple(t.id for t in trials),
        params=tuple(dict(t.settings()) for t in trials),
        seeds=tuple(t.seed for t in trials),
        thresholds=thresholds,
    )


class Listed(Sampler):
    """Asks the trials of a list, `at_once` at a time, and remembers what it was told."""

    def __init__(self, trials: Sequence[Trial], at_once: int | None = None) -> None:
        self._left = list(trials)
        self._at_once = at_once or len(trials)
        self._total = len(trials)
        self._waits_for = 0
        self.told: list[TrialResult] = []

    def ask(self, count: int) -> list[Trial]:
        if self._waits_for:
            return []
        take = min(count, self._at_once)
        batch, self._left = self._left[:take], self._left[take:]
        self._waits_for = len(batch)
        return batch

    def tell(self, result: TrialResult) -> None:
        self._waits_for -= 1
        self.told.append(result)

    @property
    def exhausted(self) -> bool:
        return not self._left

    @property
    def expected_trials(self) -> int:
        return self._total


def run(
    trials: Sequence[Trial],
    tracker: Tracker,
    *,
    pool: Callable[[], Dispatcher] = InlineDispatcher,
    sampler: Sampler | None = None,
    level: float = 3.0,
    progress: ProgressDisplay | None = None,
    stop: threading.Event | None = None,
) -> Summary:
    """Run trials of one job to the end, with thresholds whose fingerprint is their value."""
    job = load_job(trials[0].job)
    thresholds = job.Thresholds(level=level)  # type: ignore[call-arg]
    return Runner(
        job_name=trials[0].job,
        planner=Planner(job_name=trials[0].job, job=job, calibration=Calibration(), memory_budget_bytes=1e9),
        sampler=sampler or Listed(trials),
        tracker=tracker,
        pool=pool,
        progress=progress or Silent(),
        thresholds=thresholds,
        fingerprint=str(as_dict(thresholds)),
        axes=("slope",),
        stop=stop,
    ).run()


class Kept(MemoryTracker):
    """The record in memory, which also refuses what a runner must not do, and counts what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.largest_begin = 0
        self.open(3.0)

    def open(self, level: float) -> None:
        """Open the one sweep of these tests, under thresholds of this level."""
        self.open_sweep(
            SweepRecord(sweep_id="sweep", name="sweep", job="job", resolved_yaml="", thresholds=str({"level": level}))
        )

    @property
    def status(self) -> dict[str, Status]:
        return {trial_id: run.status for trial_id, run in self.kept.runs.items()}

    def result(self, trial: Trial) -> Recorded:
        return self.index([trial.id])[trial.id]

    def curve(self, trial: Trial, metric: str = "value") -> dict[int, float]:
        ((_, curves),) = self.curves([trial.id])
        return dict(zip(curves.step.tolist(), curves.values[metric].tolist(), strict=True))

    def begin(self, trials: Sequence[Trial]) -> None:
        self.largest_begin = max(self.largest_begin, len(trials))
        status = self.status
        assert not [t for t in trials if status.get(t.id) is Status.FINISHED], "a finished trial was begun again"
        self.begun.update(trial.id for trial in trials)
        super().begin(trials)

    def record(self, rows: CurveRows) -> None:
        assert {self.status[t] for t in rows.trial_ids} == {Status.RUNNING}, "rows of a trial that does not run"
        super().record(rows)

    def end(self, results: Sequence[TrialResult]) -> None:
        status = self.status
        assert {status[r.trial_id] for r in results} <= {Status.RUNNING}, "a trial ended that does not run"
        self.ended.update(result.trial_id for result in results)
        super().end(results)
