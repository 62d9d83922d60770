"""A tracker that keeps everything in this process: for tests, for trying out, and for sweeps that need no record.

It follows every rule of the contract, and is the reference for what the other trackers must return.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jobs.job import Curves, Observations, Scalar
from orchestrator.records import CurveRows, Recorded, Status, TrialResult
from orchestrator.tracking.base import RecordTracker, SweepRecord, TrialRow, begun, check_metric_names
from orchestrator.tracking.lease import taken
from orchestrator.tracking.rows import later
from orchestrator.trial import Trial


@dataclass(slots=True)
class _Run:
    trial_id: str
    params: Mapping[str, Scalar]
    replicate: int
    sweep_id: str
    status: Status = Status.RUNNING
    phase: str | None = None
    observations: Observations = field(default_factory=dict)
    thresholds: str = ""
    error: str | None = None
    trained: str = ""
    points: dict[int, dict[str, float]] = field(default_factory=dict)
    """Step -> metric -> value; steps increase."""

    def recorded(self) -> Recorded:
        return Recorded(
            status=self.status,
            phase=self.phase,
            observations=dict(self.observations),
            thresholds=self.thresholds,
            through_step=-1 if self.status is Status.FINISHED else next(reversed(self.points), -1),
        )


@dataclass(slots=True)
class MemoryRecord:
    """What remains when a `MemoryTracker` is closed: pass it to the next one to reopen the same record."""

    runs: dict[str, _Run] = field(default_factory=dict)
    """Trial id -> run; the run id is the trial id."""
    sweeps: dict[str, str] = field(default_factory=dict)
    """Sweep id -> status of its parent run, whose run id is the sweep id."""
    artifacts: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """(sweep id, artifact path) -> content."""
    metrics: dict[tuple[str, str], float] = field(default_factory=dict)
    """(sweep id, name) -> the sweep's own metric; the last point if it is a curve."""
    traces: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    """(sweep id, name) -> step -> value of a curve of the sweep itself."""
    writer: MemoryTracker | None = None
    """The tracker that drives it."""


class MemoryTracker(RecordTracker):
    """The record as dictionaries. Nothing is kept when the process ends."""

    def __init__(self, record: MemoryRecord | None = None) -> None:
        self.kept = record if record is not None else MemoryRecord()

    def _open_parent(self, sweep: SweepRecord, running: bool) -> str:
        if running:
            if self.kept.writer not in (None, self):
                raise taken("memory:", sweep.name)
            self.kept.writer = self
            self.kept.sweeps[sweep.sweep_id] = Status.RUNNING.value
        else:
            self.kept.sweeps.setdefault(sweep.sweep_id, Status.FINISHED.value)
        return sweep.sweep_id

    def find_sweep(self, sweep_id: str) -> str | None:
        self._check_open()
        return sweep_id if sweep_id in self.kept.sweeps else None

    def trials_of(self, sweep_id: str) -> list[str]:
        self._check_open()
        return [trial for trial, run in self.kept.runs.items() if run.sweep_id == sweep_id]

    def index(self, trial_ids: Iterable[str]) -> dict[str, Recorded]:
        return {run.trial_id: run.recorded() for run in self._runs(trial_ids)}

    def _runs(self, trial_ids: Iterable[str]) -> Iterator[_Run]:
        self._check_open()
        return (self.kept.runs[trial] for trial in trial_ids if trial in self.kept.runs)

    def begin(self, trials: Sequence[Trial]) -> None:
        sweep = self._driven()
        for trial in trials:
            run = self.kept.runs.get(trial.id)
            if run is None or run.status is not Status.FINISHED:
                self.kept.runs[trial.id] = _Run(trial.id, dict(trial.settings()), trial.replicate, sweep.sweep_id)

    def record(self, rows: CurveRows) -> None:
        self._driven()
        check_metric_names(rows.metrics)
        runs = [begun(self.kept.runs, trial) for trial in rows.trial_ids]
        through = [next(reversed(run.points), -1) for run in runs]
        present = np.ones(rows.values.shape, dtype=np.bool_) if rows.present is None else rows.present
        for r, (position, step) in enumerate(zip(rows.trial.tolist(), rows.step.tolist(), strict=True)):
            if step > through[position] and present[r].any():
                point = {name: float(rows.values[r, k]) for k, name in enumerate(rows.metrics) if present[r, k]}
                runs[position].points[step] = point

    def end(self, results: Sequence[TrialResult]) -> None:
        self._driven()
        for result in results:
            run = begun(self.kept.runs, result.trial_id)
            self._label(run, result)
            run.status, run.error, run.trained = Status(result.status), result.error, result.trained

    def relabel(self, results: Sequence[TrialResult]) -> None:
        self._opened()
        for result in results:
            self._label(begun(self.kept.runs, result.trial_id), result)

    def _label(self, run: _Run, result: TrialResult) -> None:
        check_metric_names(result.observations)
        run.phase, run.observations = result.phase, dict(result.observations)
        run.thresholds = self._opened().thresholds

    def reconcile(self) -> int:
        sweep = self._driven()
        orphans = [
            run for run in self.kept.runs.values() if run.status is Status.RUNNING and run.sweep_id == sweep.sweep_id
        ]
        for run in orphans:
            run.status = Status.KILLED
        return len(orphans)

    def rows(self, trial_ids: Iterable[str], *, settings: bool = True) -> Iterator[TrialRow]:
        for run in self._runs(trial_ids):
            yield TrialRow(
                trial_id=run.trial_id,
                run_id=run.trial_id,
                params=dict(run.params) if settings else {},
                replicate=run.replicate if settings else 0,
                recorded=run.recorded(),
                error=run.error,
                trained=run.trained if settings else "",
            )

    def curves(self, trial_ids: Iterable[str], metrics: Sequence[str] | None = None) -> Iterator[tuple[str, Curves]]:
        for run in self._runs(trial_ids):
            wanted = {name for point in run.points.values() for name in point}
            wanted = wanted if metrics is None else wanted.intersection(metrics)
            points = {step: point for step, point in run.points.items() if not wanted.isdisjoint(point)}
            if points:
                values = {n: np.array([point.get(n, np.nan) for point in points.values()]) for n in sorted(wanted)}
                yield run.trial_id, Curves(step=np.array(list(points), dtype=np.int64), values=values)

    def attach(self, files: Mapping[str, Path]) -> None:
        sweep = self._opened()
        for path, file in files.items():
            self.kept.artifacts[sweep.sweep_id, path] = Path(file).read_bytes()

    def detach(self, paths: Iterable[str]) -> tuple[str, ...]:
        sweep = self._opened()
        for path in paths:
            self.kept.artifacts.pop((sweep.sweep_id, path), None)
        return ()

    def _annotate(self, metrics: Mapping[str, float], status: Status | None) -> None:
        sweep = self._opened()
        for name, value in metrics.items():
            if (sweep.sweep_id, name) not in self.kept.traces:
                self.kept.metrics[sweep.sweep_id, name] = float(value)
        if status is not None:
            self.kept.sweeps[sweep.sweep_id] = status.value

    def trace(self, name: str, points: Iterable[tuple[int, float]]) -> None:
        key = self._opened().sweep_id, name
        check_metric_names([name])
        curve = self.kept.traces.get(key, {})
        new = later(points, max(curve, default=-1))
        if new:
            self.kept.traces[key] = {**curve, **dict(new)}
            self.kept.metrics[key] = new[-1][1]

    def close(self) -> None:
        """The record stays with its owner."""
        if self.kept.writer is self:
            self.kept.writer = None
        self._closed = True
