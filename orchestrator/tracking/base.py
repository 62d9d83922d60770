"""The interface to the record of a sweep: what the runner, `map` and `status` read and write.

A curve belongs to one training. When an unfinished trial begins, its curve starts again, whatever an earlier attempt
has left. After that, every method that writes is idempotent. A curve row is (trial, metric, step) and is written once;
its timestamp is the start of the run plus its step in milliseconds, so a repeated write gives the same row.

An experiment has one driver at a time: `open_sweep` takes a lease that ends when the tracker closes, its process dies
or, where that cannot be known, it is not renewed (see `lease.py`). Reading, and `open_sweep(..., running=False)`, need
no lease.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jobs.job import LONGEST_METRIC_NAME, Curves, Scalar, is_metric_name
from orchestrator.errors import UserError
from orchestrator.records import CurveRows, Recorded, Status, TrialResult
from orchestrator.trial import Trial

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """What the parent run holds about its sweep."""

    sweep_id: str
    name: str
    job: str
    resolved_yaml: str
    """Kept as the artifact `sweep.yaml`."""
    thresholds: str
    """Fingerprint of the thresholds in force: written with every phase (see `Recorded`)."""
    axes: tuple[str, ...] = ()
    """Names of the swept parameters: the run of a trial is named after its values of these."""
    again: str = ""
    """How to go on with the sweep where it runs as a job of a cluster; empty where `phasefront run` does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRow:
    """One recorded trial as `map` reads it."""

    trial_id: str
    run_id: str
    params: Mapping[str, Scalar]
    """Empty if the settings were not asked for."""
    replicate: int
    """0 if the settings were not asked for."""
    recorded: Recorded
    error: str | None = None
    """The error of a failed or killed trial, shortened where it was too long to store."""
    trained: str = ""
    """Its training record (`TrialResult.trained`); "" if there is none, or if the settings were not asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A trial with a value that the record cannot hold."""

    trial_id: str
    error: str
    """What the database said."""
    ended_as: Status | None = None
    """The status that the trial has ended with, if it has ended."""
    phase: str | None = None
    """The phase that it has ended with."""


class Refused(Exception):
    """The record cannot hold these trials' values; their rows and results are dropped, and the others are written."""

    def __init__(self, trials: Sequence[Refusal]) -> None:
        super().__init__("; ".join(f"trial {trial.trial_id}: {trial.error}" for trial in trials))
        self.trials = tuple(trials)


def _say_nothing(line: str) -> None:
    del line


class Tracker(ABC):
    """One writer's connection to the record. Not thread-safe."""

    say: Callable[[str], None] = staticmethod(_say_nothing)
    """Called with a line to show, such as the reason of a wait; set it before `open_sweep`."""

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment; None if it does not exist yet, or if MLflow cannot open the record."""
        return None

    @property
    def sweep_start_ms(self) -> int:
        """When the parent run of `open_sweep` was created; 0 if unknown. Two records may have equal run ids."""
        return 0

    @abstractmethod
    def open_sweep(self, sweep: SweepRecord, *, running: bool = True) -> str:
        """Find or create the parent run of a sweep, for all further writes; return its run id.

        Args:
            sweep: The sweep.
            running: Its trials are going to run: this tracker holds the lease of the experiment until `close`, and the
                parent is RUNNING. If False, no lease is taken and an existing parent keeps its status and end time (a
                new one is FINISHED); `begin`, `record`, `end`, `reconcile` and `end_sweep` then raise `RuntimeError`.

        Raises:
            UserError: Another driver holds the lease of the experiment.
        """

    @abstractmethod
    def find_sweep(self, sweep_id: str) -> str | None:
        """The run id of a sweep's parent run, or None. Reads only."""

    @abstractmethod
    def trials_of(self, sweep_id: str) -> list[str]:
        """The ids of the trials whose runs are nested under a sweep's parent, in any status. Reads only."""

    @abstractmethod
    def index(self, trial_ids: Iterable[str]) -> dict[str, Recorded]:
        """The state of these trials, in any sweep of the experiment; trials without a run are left out.

        Set-based: the number of round trips does not grow with each trial.
        """

    def statuses(self, trial_ids: Iterable[str]) -> dict[str, Status]:
        """The status of these trials, as `index` has it, without the rest; trials without a run are left out."""
        return {trial: recorded.status for trial, recorded in self.index(trial_ids).items()}

    @abstractmethod
    def begin(self, trials: Sequence[Trial]) -> None:
        """The trials start: each has one RUNNING run with its parameters, and no curve yet.

        Rows, observations, phase and error of an unfinished trial's earlier attempt (failed, killed, or in a pack that
        this driver runs again) are deleted. Its run is reopened or, where rows cannot be deleted (HTTP), replaced. A
        finished trial does not change.
        """

    @abstractmethod
    def record(self, rows: CurveRows) -> None:
        """Append curve rows of begun trials; rows at or before a trial's last step since `begin` are dropped."""

    @abstractmethod
    def end(self, results: Sequence[TrialResult]) -> None:
        """The trials ended: status, observations (as run metrics), phase (as a tag), error (as a tag)."""

    def settle(self) -> None:
        """Write what has been buffered for long enough; the driver of a sweep calls it several times a second.

        A tracker may buffer writes for a fraction of a second, to write more at once.
        """
        return

    def settled(self) -> bool:
        """Whether the record holds everything that was written so far; does not wait for it."""
        return True

    @abstractmethod
    def reconcile(self) -> int:
        """End the sweep's RUNNING trials (orphans of a driver that died) as KILLED; return how many."""

    @abstractmethod
    def relabel(self, results: Sequence[TrialResult]) -> None:
        """Replace phase and observations of finished trials (the thresholds have changed)."""

    def complete(self, trials: Sequence[Trial]) -> int:
        """Add to recorded trials their values on the sweep's axes as metrics (`axis/NAME`), where they are missing.

        A trial has them from its begin; one of an earlier version, or of a sweep with other axes, has not. Nothing else
        changes. Set-based, as `index`.

        Returns:
            The number of trials that were completed.
        """
        del trials
        return 0

    @abstractmethod
    def rows(self, trial_ids: Iterable[str], *, settings: bool = True) -> Iterator[TrialRow]:
        """The recorded ones of these trials, in the order of `trial_ids`.

        Args:
            trial_ids: The trials.
            settings: Whether `params`, `replicate` and `trained` are read; who has the trials need not ask for them.
        """

    @abstractmethod
    def curves(self, trial_ids: Iterable[str], metrics: Sequence[str] | None = None) -> Iterator[tuple[str, Curves]]:
        """The recorded curves of these trials, in the order of `trial_ids`, a bounded number in memory at a time.

        Args:
            trial_ids: The trials; those without rows are left out.
            metrics: Only these metrics, and only the steps at which one of them was reported; None for all.
        """

    @abstractmethod
    def attach(self, files: Mapping[str, Path]) -> None:
        """Store files as artifacts of the parent run: artifact path -> local file."""

    @abstractmethod
    def detach(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Delete files from the parent run's artifacts, where they exist; folders are never deleted.

        Returns:
            The files that may still be there because the artifact store did not delete them.
        """

    def describe(self, text: str) -> None:
        """Replace the description of the parent run, in Markdown, where the record has one."""
        del text

    @abstractmethod
    def annotate(self, metrics: Mapping[str, float]) -> None:
        """Set the sweep's own metrics, replacing earlier values; the status of the sweep does not change.

        A metric that is a curve (see `trace`) is left out: the curve has more information.
        """

    @abstractmethod
    def trace(self, name: str, points: Iterable[tuple[int, float]]) -> None:
        """Append points (step >= 1, value) to a curve of the sweep itself, a metric of its parent run.

        Points at or before the last recorded step are dropped, and of equal steps the first is kept, so the same points
        can be given again after a crash. Timestamps are those of every curve. A value of that name that `annotate` has
        written before is replaced by the curve.
        """

    @abstractmethod
    def end_sweep(self, status: str, metrics: Mapping[str, float]) -> None:
        """The parent run ends as FINISHED, FAILED or KILLED, with the sweep's own metrics."""

    @abstractmethod
    def close(self) -> None:
        """Write what is buffered and close connections. May be called twice; other calls then raise `RuntimeError`."""

    def ready(self, timeout_s: float) -> bool:
        """Whether the tracker takes more trials and rows now; waits up to `timeout_s` for that."""
        del timeout_s
        return True

    def refused(self) -> list[Refusal]:
        """The trials, since the last call, that the record could not hold; they are recorded as FAILED."""
        return []

    def flush(self) -> None:
        """Write everything that is buffered."""
        return

    def reconnect(self) -> None:
        """Replace a connection that may be broken, check that this is still the experiment's driver, and `flush`.

        Raises:
            Outage: Another driver has taken over, or the record has lost what it had confirmed.
            Exception: of the database driver or server, if it still does not answer.
        """
        self.flush()

    def cut_if_hung(self) -> None:
        """Cut the connection if the record does not answer a new one either, or a statement for minutes.

        A request that hangs then fails.

        Called by another thread, while a request has not been answered for long.
        """
        return

    def abandon(self) -> None:
        """Close without writing what is buffered, because the record does not answer."""
        self.close()


class RecordTracker(Tracker):
    """What the trackers that keep a record themselves share: checks, and the sweep file as an artifact."""

    _sweep: SweepRecord | None = None
    _running = False
    _closed = False

    def open_sweep(self, sweep: SweepRecord, *, running: bool = True) -> str:
        self._check_open()
        parent = self._open_parent(sweep, running)
        self._sweep, self._running = sweep, running
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "sweep.yaml")
            file.write_text(sweep.resolved_yaml, encoding="utf-8")
            self.attach({"sweep.yaml": file})
        return parent

    @abstractmethod
    def _open_parent(self, sweep: SweepRecord, running: bool) -> str:
        """Find or create the parent run, see `open_sweep`; its run id."""

    def annotate(self, metrics: Mapping[str, float]) -> None:
        self._opened()
        check_metric_names(metrics)
        self._annotate(metrics, None)

    @abstractmethod
    def _annotate(self, metrics: Mapping[str, float], status: Status | None) -> None:
        """Set the parent run's metrics, see `annotate`, then its status and end time unless `status` is None."""

    def end_sweep(self, status: str, metrics: Mapping[str, float]) -> None:
        self._driven()
        check_metric_names(metrics)
        self._annotate(metrics, Status(status))

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the tracker is closed")

    def _opened(self) -> SweepRecord:
        """The sweep of `open_sweep`."""
        self._check_open()
        if self._sweep is None:
            raise RuntimeError("call open_sweep before writing")
        return self._sweep

    def _driven(self) -> SweepRecord:
        """The sweep of `open_sweep`, whose trials may run."""
        sweep = self._opened()
        if not self._running:
            raise RuntimeError("call open_sweep(..., running=True) before running trials")
        return sweep


def begun(runs: Mapping[str, R], trial_id: str) -> R:
    """The run of a trial.

    Raises:
        LookupError: The trial was never begun.
    """
    if trial_id not in runs:
        raise LookupError(f"trial {trial_id} was never begun")
    return runs[trial_id]


def check_metric_names(names: Iterable[str]) -> None:
    """Check MLflow's rule for metric names, so that MLflow's own client can read and write what we write.

    Raises:
        UserError: A name breaks the rule.
    """
    for name in names:
        if not is_metric_name(name):
            raise UserError(
                f"a metric's name must be 1 to {LONGEST_METRIC_NAME} letters, digits, '_', '-', '.', ' ', ':' or '/', "
                "must not start with '/', ':' or a space, and must contain neither '//' nor a part '..'",
                value=name,
                next_step="rename the metric in the job that reports it",
            )
