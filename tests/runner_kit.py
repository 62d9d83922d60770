"""What the runner's tests share: trials of the small jobs, a list as sampler, and one call that runs them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from jobs.catalogue import load_job
from jobs.job import as_dict
from orchestrator.calibration import Calibration
from orchestrator.dispatch.base import Dispatcher, PackTask
from orchestrator.dispatch.inline import InlineDispatcher
from orchestrator.plan import Planner
from orchestrator.progress import Progress, Silent
from orchestrator.runner import Runner, Summary
from orchestrator.search.base import Outcome, Sampler
from orchestrator.tracking.base import Tracker
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
