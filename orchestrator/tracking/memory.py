"""A tracker that keeps everything in this process: for tests, trying out, and sweeps nobody needs again.

It follows every rule of the contract, and is the reference for what the others must give back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jobs.job import Curves, Observations, Scalar
from orchestrator.records import CurveRows, Recorded, Status, TrialResult
from orchestrator.tracking.base import SweepRecord, Tracker, TrialRow
from orchestrator.tracking.layout import check_metric_names, observed_metrics
from orchestrator.tracking.lock import taken
from orchestrator.tracking.traces import later
from orchestrator.trial import Trial


@dataclass(slots=True)
class _Run:
    run_id: str
    params: Mapping[str, Scalar]
    replicate: int
    sweep_id: str
    status: Status = Status.RUNNING
    phase: str | None = None
    observations: Observations = field(default_factory=dict)
    thresholds: str = ""
    error: str | None = None
    steps: list[int] = field(default_factory=list)
    points: list[dict[str, float]] = field(default_factory=list)


@dataclass(slots=True)
class MemoryRecord:
    """What outlives a `MemoryTracker`: hand it to the next one to reopen the same record."""

    runs: dict[str, _Run] = field(default_factory=dict)
    sweeps: dict[str, str] = field(default_factory=dict)
    """sweep id -> status of its parent run."""
    artifacts: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """(sweep id, artifact path) -> content."""
    metrics: dict[tuple[str, str], float] = field(default_factory=dict)
    """(sweep id, name) -> the sweep's own metric, the last point of one that is a curve."""
    traces: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    """(sweep id, name) -> step -> value of a curve of the sweep's own."""
    writer: MemoryTracker | None = None
    """Who has taken it."""


class MemoryTracker(Tracker):
    """The record as dictionaries. Nothing is kept when the process ends."""

    def __init__(self, record: MemoryRecord | None = None) -> None:
        self._kept = record if record is not None else MemoryRecord()
        self._sweep: SweepRecord | None = None
        self._running = False
        self._closed = False

    @property
    def kept(self) -> MemoryRecord:
        """The record itself."""
        return self._kept

    def open_sweep(self, sweep: SweepRecord, *, running: bool = True) -> str:
        """The sweep's address is its id."""
        self._check_open()
        if running:
            if self._kept.writer not in (None, self):
                raise taken("memory:", sweep.name)
            self._kept.writer = self
            self._kept.sweeps[sweep.sweep_id] = Status.RUNNING.value
        else:
            self._kept.sweeps.setdefault(sweep.sweep_id, Status.FINISHED.value)
        self._sweep, self._running = sweep, running
        self._kept.artifacts[sweep.sweep_id, "sweep.yaml"] = sweep.resolved_yaml.encode()
        return sweep.sweep_id

    def find_sweep(self, sweep_id: str) -> str | None:
        """The sweep's address is its id."""
        self._check_open()
        return sweep_id if sweep_id in self._kept.sweeps else None

    def trials_of(self, sweep_id: str) -> list[str]:
        """In the order they were begun."""
        self._check_open()
        return [trial for trial, run in self._kept.runs.items() if run.sweep_id == sweep_id]

    def index(self, trial_ids: Iterable[str]) -> dict[str, Recorded]:
        """Of every trial begun in any sweep of this record."""
        self._check_open()
        runs = self._kept.runs
        return {trial: _recorded(runs[trial]) for trial in trial_ids if trial in runs}

    def begin(self, trials: Sequence[Trial]) -> None:
        """A finished trial stays as it is; any other starts anew."""
        sweep = self._driven()
        for trial in trials:
            run = self._kept.runs.get(trial.id)
            if run is None:
                self._kept.runs[trial.id] = _Run(
                    run_id=trial.id, params=dict(trial.settings()), replicate=trial.replicate, sweep_id=sweep.sweep_id
                )
            elif run.status is not Status.FINISHED:
                run.status, run.sweep_id = Status.RUNNING, sweep.sweep_id
                run.phase, run.observations, run.thresholds, run.error = None, {}, "", None
                run.steps, run.points = [], []

    def record(self, rows: CurveRows) -> None:
        """Keep the rows that lie beyond the trial's last step."""
        self._driven()
        check_metric_names(rows.metrics)
        runs = [self._run(trial) for trial in rows.trial_ids]
        through = [run.steps[-1] if run.steps else -1 for run in runs]
        for r, (position, step) in enumerate(zip(rows.trial.tolist(), rows.step.tolist(), strict=True)):
            if step <= through[position]:
                continue
            here = rows.present[r] if rows.present is not None else np.ones(len(rows.metrics), dtype=bool)
            point = {name: float(rows.values[r, k]) for k, name in enumerate(rows.metrics) if here[k]}
            if point:
                runs[position].steps.append(step)
                runs[position].points.append(point)

    def end(self, results: Sequence[TrialResult]) -> None:
        """Under the thresholds of the open sweep."""
        sweep = self._driven()
        for result in results:
            run = self._run(result.trial_id)
            observed_metrics(result.observations)
            run.status, run.phase, run.error = Status(result.status), result.phase, result.error
            run.observations, run.thresholds = dict(result.observations), sweep.thresholds

    def reconcile(self) -> int:
        """Orphans are trials that an earlier tracker on the same record left RUNNING."""
        sweep = self._driven()
        orphans = [
            run for run in self._kept.runs.values() if run.status is Status.RUNNING and run.sweep_id == sweep.sweep_id
        ]
        for run in orphans:
            run.status = Status.KILLED
        return len(orphans)

    def relabel(self, results: Sequence[TrialResult]) -> None:
        """Under the thresholds of the open sweep."""
        sweep = self._opened()
        for result in results:
            run = self._run(result.trial_id)
            run.phase, run.observations, run.thresholds = result.phase, dict(result.observations), sweep.thresholds

    def rows(self, trial_ids: Iterable[str]) -> Iterator[TrialRow]:
        """In the order of `trial_ids`."""
        self._check_open()
        for trial in trial_ids:
            run = self._kept.runs.get(trial)
            if run is not None:
                yield TrialRow(
                    trial_id=trial,
                    run_id=run.run_id,
                    params=dict(run.params),
                    replicate=run.replicate,
                    recorded=_recorded(run),
                    error=run.error,
                )

    def curves(self, trial_ids: Iterable[str]) -> Iterator[tuple[str, Curves]]:
        """In the order of `trial_ids`; trials without rows are left out."""
        self._check_open()
        for trial in trial_ids:
            run = self._kept.runs.get(trial)
            if run is not None and run.steps:
                names = dict.fromkeys(name for point in run.points for name in point)
                yield (
                    trial,
                    Curves(
                        step=np.array(run.steps, dtype=np.int64),
                        values={
                            name: np.array([point.get(name, np.nan) for point in run.points], dtype=np.float64)
                            for name in sorted(names)
                        },
                    ),
                )

    def attach(self, files: Mapping[str, Path]) -> None:
        """The files' content is kept, see `MemoryRecord.artifacts`."""
        sweep = self._opened()
        for path, file in files.items():
            self._kept.artifacts[sweep.sweep_id, path] = Path(file).read_bytes()

    def detach(self, paths: Iterable[str]) -> tuple[str, ...]:
        """From `MemoryRecord.artifacts`."""
        sweep = self._opened()
        for path in paths:
            self._kept.artifacts.pop((sweep.sweep_id, path), None)
        return ()

    def annotate(self, metrics: Mapping[str, float]) -> None:
        """See `MemoryRecord.metrics`."""
        sweep = self._opened()
        check_metric_names(metrics)
        for name, value in metrics.items():
            if (sweep.sweep_id, name) not in self._kept.traces:
                self._kept.metrics[sweep.sweep_id, name] = float(value)

    def trace(self, name: str, points: Iterable[tuple[int, float]]) -> None:
        """See `MemoryRecord.traces`."""
        sweep = self._opened()
        check_metric_names([name])
        key = sweep.sweep_id, name
        curve = self._kept.traces.get(key, {})
        new = later(points, max(curve, default=-1))
        if new:
            self._kept.traces[key] = {**curve, **dict(new)}
            self._kept.metrics[key] = new[-1][1]

    def end_sweep(self, status: str, metrics: Mapping[str, float]) -> None:
        """See `MemoryRecord.sweeps` and `MemoryRecord.metrics`."""
        sweep = self._driven()
        self.annotate(metrics)
        self._kept.sweeps[sweep.sweep_id] = Status(status).value

    def close(self) -> None:
        """The record itself stays with who holds it."""
        if self._kept.writer is self:
            self._kept.writer = None
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the tracker is closed")

    def _opened(self) -> SweepRecord:
        self._check_open()
        if self._sweep is None:
            raise RuntimeError("open_sweep comes before anything is written")
        return self._sweep

    def _driven(self) -> SweepRecord:
        sweep = self._opened()
        if not self._running:
            raise RuntimeError("open_sweep(..., running=True) comes before trials are run")
        return sweep

    def _run(self, trial: str) -> _Run:
        try:
            return self._kept.runs[trial]
        except KeyError:
            raise LookupError(f"trial {trial} was never begun") from None


def _recorded(run: _Run) -> Recorded:
    return Recorded(
        status=run.status,
        phase=run.phase,
        observations=dict(run.observations),
        thresholds=run.thresholds,
        through_step=-1 if run.status is Status.FINISHED or not run.steps else run.steps[-1],
    )
