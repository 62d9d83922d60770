"""Where curves are kept: the contract that the runner, `map` and `status` use.

A curve is of one training: a trial that is begun and has not finished starts its curve anew, whatever
an earlier attempt has left. From then on every method that writes is idempotent: what is recorded is
not recorded again. A row of a curve is (trial, metric, step), written once; its timestamp is the run's
start plus its step in milliseconds, so that a repeated write is the same row.

One driver at a time: `open_sweep` takes the experiment for as long as the tracker is open, by a lock that
dies with the process. Reading, and `open_sweep(..., running=False)`, need no lock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.job import Curves, Scalar
from orchestrator.records import CurveRows, Recorded, TrialResult
from orchestrator.trial import Trial


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """What the parent run says of a sweep."""

    sweep_id: str
    name: str
    job: str
    resolved_yaml: str
    """Kept as the artifact `sweep.yaml`."""
    thresholds: str
    """Fingerprint of the thresholds in force: written with every phase (see `Recorded`)."""
    axes: tuple[str, ...] = ()
    """Names of the swept parameters: a trial's run is named by its values of these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRow:
    """One recorded trial as `map` reads it back: parameters are text-free plain data."""

    trial_id: str
    run_id: str
    params: Mapping[str, Scalar]
    replicate: int
    recorded: Recorded
    error: str | None = None
    """What a trial that ended otherwise than FINISHED died of, as far as it is kept."""


class Tracker(ABC):
    """One writer's connection to the record. Not for use from several threads at once."""

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment; None where there is none yet, or where MLflow cannot open the record."""
        return None

    @abstractmethod
    def open_sweep(self, sweep: SweepRecord, *, running: bool = True) -> str:
        """Create the sweep's parent run, or find it; its address for people to look at (a run id).

        Args:
            sweep: The sweep that all further writing is for.
            running: Its trials are to run: the experiment is taken, until `close`, and the parent is RUNNING.
                If False nothing is taken, and a parent's status and end stay (a new one has FINISHED at
                once): then `begin`, `record`, `end`, `reconcile` and `end_sweep` are errors.

        Raises:
            UserError: another driver has taken the experiment (by HTTP nobody can tell).
        """

    @abstractmethod
    def find_sweep(self, sweep_id: str) -> str | None:
        """The address of a sweep's parent run, where there is one. Reads only."""

    @abstractmethod
    def trials_of(self, sweep_id: str) -> list[str]:
        """The ids of the trials whose runs are nested under a sweep's parent, in any status. Reads only."""

    @abstractmethod
    def index(self, trial_ids: Iterable[str]) -> dict[str, Recorded]:
        """What is recorded of these trials, in any sweep of the experiment; absent ones are left out.

        Set-based: the number of round trips does not grow with the number of trials one by one.
        """

    @abstractmethod
    def begin(self, trials: Sequence[Trial]) -> None:
        """The trials start: each has one RUNNING run with its parameters, and no curve yet.

        What an unfinished trial's earlier attempt has left (failed, killed, or of a pack that this
        tracker's driver runs again) is gone: rows, observations, phase and error. Its run is reopened,
        or, where rows cannot be deleted (HTTP), replaced. A finished trial stays as it is.
        """

    @abstractmethod
    def record(self, rows: CurveRows) -> None:
        """Append curve rows of begun trials; rows at or before a trial's last step since `begin` are dropped."""

    @abstractmethod
    def end(self, results: Sequence[TrialResult]) -> None:
        """The trials ended: status, observations (as run metrics), phase (as a tag), error (as a tag)."""

    def settle(self) -> None:
        """Write what has waited long enough; who drives a sweep calls it several times a second.

        A tracker may keep what it is given, for a fraction of a second, to write more of it at once.
        """
        return

    @abstractmethod
    def reconcile(self) -> int:
        """End the sweep's RUNNING trials, left by a driver that died, as KILLED; return how many."""

    @abstractmethod
    def relabel(self, results: Sequence[TrialResult]) -> None:
        """Replace phase and observations of finished trials (the thresholds have changed)."""

    @abstractmethod
    def rows(self, trial_ids: Iterable[str]) -> Iterator[TrialRow]:
        """The recorded trials among these, for the phase diagram."""

    @abstractmethod
    def curves(self, trial_ids: Iterable[str]) -> Iterator[tuple[str, Curves]]:
        """The recorded curves of these trials, a bounded number in memory at a time."""

    @abstractmethod
    def attach(self, files: Mapping[str, Path]) -> None:
        """Keep files as artifacts of the parent run: artifact path -> local file."""

    @abstractmethod
    def detach(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Delete files among the parent run's artifacts, those that are there; never a folder.

        Returns:
            Those that may still be there, where the place of the artifacts does not let us delete.
        """

    @abstractmethod
    def annotate(self, metrics: Mapping[str, float]) -> None:
        """The sweep's own metrics, in place of earlier ones of their names; its status stays.

        A name that was traced is left out: its curve says more.
        """

    @abstractmethod
    def trace(self, name: str, points: Iterable[tuple[int, float]]) -> None:
        """Points (step >= 1, value) of a curve of the sweep's own, a metric of its parent run.

        Points at or before the curve's last recorded step are dropped, of equal steps the first counts; the
        timestamps are those of every curve. So the same points can be given again, after whatever crash. A metric of
        that name that `annotate` has written before gives way to the curve.
        """

    @abstractmethod
    def end_sweep(self, status: str, metrics: Mapping[str, float]) -> None:
        """The parent run ends as FINISHED, FAILED or KILLED, with the sweep's own metrics."""

    @abstractmethod
    def close(self) -> None:
        """Write what is pending and let go of connections. Further calls are errors; close is not."""
