"""What the runner's tests share: trials of the small jobs, a list as sampler, and one call that runs them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.catalogue import load_job
from jobs.job import Curves, as_dict
from orchestrator.calibration import Calibration
from orchestrator.dispatch.base import Dispatcher, PackTask
from orchestrator.dispatch.inline import InlineDispatcher
from orchestrator.plan import Planner
from orchestrator.progress import Progress, Silent
from orchestrator.records import CurveRows, Recorded, Status, TrialResult
from orchestrator.runner import Runner, Summary
from orchestrator.search.base import Outcome, Sampler
from orchestrator.tracking.base import SweepRecord, Tracker, TrialRow
from orchestrator.trial import Trial

RAMP = "jobs_for_runner:Ramp"
COSTLY = "jobs_for_runner:CostlyRamp"


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
        self.told: list[Outcome] = []

    def ask(self, count: int) -> list[Trial]:
        if self._waits_for:
            return []
        take = min(count, self._at_once)
        batch, self._left = self._left[:take], self._left[take:]
        self._waits_for = len(batch)
        return batch

    def tell(self, outcome: Outcome) -> None:
        self._waits_for -= 1
        self.told.append(outcome)

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
    progress: Progress | None = None,
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
        stop=stop,
    ).run()


class Kept(Tracker):
    """The record in memory, as plain as can be; refuses what the contract forbids the runner to do."""

    def __init__(self, fingerprint: str = "{'level': 3.0}") -> None:
        self.fingerprint = fingerprint
        self.status: dict[str, Status] = {}
        self.results: dict[str, TrialResult] = {}
        self.prints: dict[str, str] = {}
        self.written: dict[str, dict[int, tuple[float, ...]]] = {}
        self.metrics: tuple[str, ...] = ()
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.largest_begin = 0

    def open_sweep(self, sweep: SweepRecord) -> str:
        return "run"

    def index(self, trial_ids: Iterable[str]) -> dict[str, Recorded]:
        return {
            trial_id: Recorded(
                status=self.status[trial_id],
                phase=self.results[trial_id].phase if trial_id in self.results else None,
                observations=self.results[trial_id].observations if trial_id in self.results else {},
                thresholds=self.prints.get(trial_id, ""),
                through_step=max(self.written.get(trial_id, {}), default=-1),
            )
            for trial_id in trial_ids
            if trial_id in self.status
        }

    def begin(self, trials: Sequence[Trial]) -> None:
        self.largest_begin = max(self.largest_begin, len(trials))
        for trial in trials:
            assert self.status.get(trial.id) is not Status.FINISHED, "a finished trial was begun again"
            self.status[trial.id] = Status.RUNNING
            self.begun[trial.id] += 1

    def record(self, rows: CurveRows) -> None:
        self.metrics = rows.metrics
        for r, t in enumerate(rows.trial.tolist()):
            trial_id = rows.trial_ids[t]
            assert self.status[trial_id] is Status.RUNNING, "rows of a trial that does not run"
            self.written.setdefault(trial_id, {}).setdefault(int(rows.step[r]), tuple(rows.values[r].tolist()))

    def end(self, results: Sequence[TrialResult]) -> None:
        for result in results:
            assert self.status[result.trial_id] is Status.RUNNING, "a trial ended that does not run"
            self.status[result.trial_id] = result.status
            self.results[result.trial_id] = result
            self.prints[result.trial_id] = self.fingerprint
            self.ended[result.trial_id] += 1

    def reconcile(self, running: Iterable[str] = ()) -> int:
        orphans = [t for t, s in self.status.items() if s is Status.RUNNING and t not in set(running)]
        self.status |= dict.fromkeys(orphans, Status.KILLED)
        return len(orphans)

    def relabel(self, results: Sequence[TrialResult]) -> None:
        for result in results:
            self.results[result.trial_id] = result
            self.prints[result.trial_id] = self.fingerprint

    def rows(self, trial_ids: Iterable[str]) -> Iterator[TrialRow]:
        raise NotImplementedError

    def curves(self, trial_ids: Iterable[str]) -> Iterator[tuple[str, Curves]]:
        for trial_id in trial_ids:
            steps = sorted(self.written[trial_id])
            table = np.array([self.written[trial_id][step] for step in steps])
            values = {name: table[:, k] for k, name in enumerate(self.metrics)}
            yield trial_id, Curves(step=np.array(steps), values=values)

    def attach(self, files: Mapping[str, Path]) -> None:
        pass

    def end_sweep(self, status: str, metrics: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass
