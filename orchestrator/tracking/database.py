"""A tracker that writes MLflow's database itself: bulk statements in this process, no server between.

Reading needs no mlflow (an import of 3 s) and creates nothing: where there is no database or no
experiment yet, nothing is recorded. `open_sweep` creates what is missing, by MLflow's own code.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jobs.job import Curves
from orchestrator.errors import UserError
from orchestrator.records import CurveRows, Recorded, Status, TrialResult
from orchestrator.tracking import layout
from orchestrator.tracking.address import database_address
from orchestrator.tracking.artifacts import delete_from, upload_to
from orchestrator.tracking.base import SweepRecord, Tracker, TrialRow
from orchestrator.tracking.bulk_sql import run_row
from orchestrator.tracking.connection import Database
from orchestrator.tracking.pending import Begun, Concluded
from orchestrator.tracking.rows import RowBuffer, latest_of, new_rows, note, observed_rows
from orchestrator.tracking.run_table import CHUNK, OpenRun, RunTable, chunked
from orchestrator.tracking.traces import later, traced_rows
from orchestrator.trial import Trial

WRITE_EVERY_S = 0.25
"""Rows and trials wait only for others that come within this time: those of a slow job are written at once."""

TRIALS_A_WRITE = 4_000

LATEST_EVERY_S = 2.0
"""`latest_metrics` of running trials is written this often, and when a trial ends."""

_READ_TAGS = (layout.PHASE, layout.THRESHOLDS, layout.OBSERVATIONS)
_ROW_TAGS = (layout.PARAMS, layout.REPLICATE, layout.ERROR)


class DatabaseTracker(Tracker):
    """The record in a SQLite or PostgreSQL database with MLflow's schema.

    Args:
        uri: `sqlite:///file`, `postgresql://...`, with or without the prefix `phasefront-`.
        experiment: Name of the MLflow experiment.
        artifacts: Artifact location of the experiment, should it be new.
        place: Where the user wrote the address, for messages.
    """

    def __init__(self, uri: str, *, experiment: str, artifacts: str | None = None, place: str = "tracking.uri") -> None:
        self._database = Database(
            database_address(uri, place=place), experiment=experiment, artifacts=artifacts, place=place
        )
        self._sweep: SweepRecord | None = None
        self._running = False
        self._parent = OpenRun(run_id="", status="", start_time=0)
        self._open: dict[str, OpenRun] = {}
        self._late: set[str] = set()
        """Begun trials whose latest metrics are not written."""
        self._latest_at = time.monotonic()
        self._waiting = RowBuffer()
        self._begun_waiting, self._ended_waiting = Begun(), Concluded()
        self._ended_unwritten: set[str] = set()
        """The trials of `_ended_waiting`: no longer open, and not yet in the database as what they are."""
        self._written_at = 0.0
        self._closed = False

    @property
    def experiment_id(self) -> str | None:
        """At most one query."""
        table = self._database.existing()
        return None if table is None else str(table.experiment_id)

    def open_sweep(self, sweep: SweepRecord, *, running: bool = True) -> str:
        """Make what is missing, by MLflow's own code, and the parent run; its run id."""
        self._check_open()
        table = self._database.create()
        if running:
            self._database.take()
        bulk, now, name = table.bulk, _now_ms(), sweep.name[: layout.LONGEST_NAME]
        with bulk.transaction():
            found, free = table.locate([sweep.sweep_id], key=layout.SWEEP_ID)
            if sweep.sweep_id in found:
                self._parent = found[sweep.sweep_id]
                bulk.execute("UPDATE runs SET name = ? WHERE run_uuid = ?", name, self._parent.run_id)
                if running:
                    self._set_status("RUNNING", None)
            else:
                self._parent = OpenRun(run_id=free[sweep.sweep_id], status="RUNNING", start_time=now)
                bulk.new_runs([self._run_row(self._parent, name)])
                if not running:
                    self._set_status("FINISHED", now)
            bulk.tags([(key, value, self._parent.run_id) for key, value in layout.sweep_tags(sweep)])
        self._running = running
        self._sweep = sweep
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "sweep.yaml")
            file.write_text(sweep.resolved_yaml)
            self.attach({"sweep.yaml": file})
        return self._parent.run_id

    def find_sweep(self, sweep_id: str) -> str | None:
        """One statement."""
        table = self._existing()
        found = {} if table is None else table.locate([sweep_id], key=layout.SWEEP_ID)[0]
        return found[sweep_id].run_id if sweep_id in found else None

    def trials_of(self, sweep_id: str) -> list[str]:
        """Two statements."""
        table, parent = self._existing(), self.find_sweep(sweep_id)
        return [] if table is None or parent is None else table.nested(parent)

    def index(self, trial_ids: Iterable[str]) -> dict[str, Recorded]:
        """Three statements for 10,000 trials: runs, tags, and the last steps of unfinished ones."""
        found: dict[str, Recorded] = {}
        self._existing()
        for chunk in chunked(trial_ids, CHUNK):
            for trial, _, tags, recorded in self._read(chunk, _READ_TAGS):
                del tags
                found[trial] = recorded
        return found

    def rows(self, trial_ids: Iterable[str]) -> Iterator[TrialRow]:
        """In the order of `trial_ids`, read 10,000 at a time."""
        for chunk in chunked(trial_ids, CHUNK):
            for trial, run, tags, recorded in self._read(chunk, (*_READ_TAGS, *_ROW_TAGS)):
                yield TrialRow(
                    trial_id=trial,
                    run_id=run.run_id,
                    params=layout.decode_params(tags[layout.PARAMS]),
                    replicate=int(tags[layout.REPLICATE]),
                    recorded=recorded,
                    error=tags.get(layout.ERROR),
                )

    def _read(
        self, trials: Sequence[str], keys: Sequence[str]
    ) -> Iterator[tuple[str, OpenRun, dict[str, str], Recorded]]:
        table = self._existing()
        if table is None:
            return
        found, _ = table.locate(trials)
        tags = table.tags([run.run_id for run in found.values()], keys)
        through = table.through_steps([run.run_id for run in found.values() if run.status != "FINISHED"])
        for trial in dict.fromkeys(trials):
            if trial in found:
                run = found[trial]
                of_run = tags[run.run_id]
                yield trial, run, of_run, layout.recorded(run.status, of_run, through.get(run.run_id, -1))

    def curves(self, trial_ids: Iterable[str]) -> Iterator[tuple[str, Curves]]:
        """In the order of `trial_ids`, about 200,000 rows at a time."""
        table = self._existing()
        if table is None:
            return
        for chunk in chunked(trial_ids, CHUNK):
            found, _ = table.locate(chunk)
            yield from table.curves({trial: found[trial].run_id for trial in dict.fromkeys(chunk) if trial in found})

    def begin(self, trials: Sequence[Trial]) -> None:
        """All trials are begun, or none; new ones are written together with what else comes closely."""
        sweep, table = self._driven()
        wanted = {trial.id: trial for trial in trials}
        if not self._ended_unwritten.isdisjoint(wanted):
            self._write_all()
        found, free = table.locate([trial for trial in wanted if trial not in self._open])
        now, new, begun = _now_ms(), {}, Begun()
        for trial, run_id in free.items():
            new[trial] = run = OpenRun(run_id=run_id, status="RUNNING", start_time=now, fresh=True)
            tags = layout.trial_tags(wanted[trial], sweep, self._parent.run_id)
            begun.runs.append(self._run_row(run, tags[0][1]))
            begun.tags += [(key, value, run_id) for key, value in tags]
            begun.params += [(key, value, run_id) for key, value in layout.params(wanted[trial])]
        known = {**found, **{trial: self._open[trial] for trial in wanted if trial in self._open}}
        self._begun_waiting.take(begun)
        self._open.update(new)
        if known:
            self._begin_known(found, known)
        else:
            self._write_if_due()

    def _begin_known(self, found: Mapping[str, OpenRun], known: Mapping[str, OpenRun]) -> None:
        """Begin trials that have a run: `found` in the database, the others begun by this tracker."""
        table = self._driven()[1]
        again = {trial: run for trial, run in known.items() if run.status != "FINISHED"}
        with self._writing():
            if again:
                self._check_there([run.run_id for run in again.values()])
                table.restart([run.run_id for run in again.values()], self._parent.run_id)
            through = table.through_steps([run.run_id for trial, run in found.items() if trial not in again])
        for trial, run in found.items():
            if trial not in again:
                run.through_step = through.get(run.run_id, -1)
        for run in again.values():
            run.status, run.through_step, run.fresh = "RUNNING", -1, True
            run.latest.clear()
        self._late.difference_update(again)
        self._open.update(found)

    def record(self, rows: CurveRows) -> None:
        """One transaction, so that a step is recorded with all its metrics or not at all.

        Calls that follow each other closely are written together; every other call of this object
        writes what waits first.
        """
        self._driven()
        layout.check_metric_names(rows.metrics)
        runs = [self._begun(trial) for trial in rows.trial_ids]
        new = new_rows(rows, runs)
        if new is None:
            return
        self._waiting.add(new, runs)
        note(new, runs)
        self._late.update(rows.trial_ids[position] for position in np.unique(new.trial).tolist())
        self._write_if_due()

    def end(self, results: Sequence[TrialResult]) -> None:
        """Status, observations and phase of a trial are written in one transaction, after or with its rows.

        Calls that follow each other closely are written together.
        """
        sweep, table = self._driven()
        last = {result.trial_id: result for result in results}
        if all(trial in self._open and self._open[trial].fresh for trial in last):
            concluded = Concluded()
            for trial, result in last.items():
                concluded.add(result, self._open[trial], sweep.thresholds, ended=True)
            self._ended_waiting.take(concluded)
            self._ended_unwritten.update(last)
        else:
            self._conclude(last, sweep, table, ended=True)
        for trial in last:
            self._open.pop(trial, None)
            self._late.discard(trial)
        self._write_if_due()

    def settle(self) -> None:
        """One transaction, where anything has waited for its time."""
        if self._running and not self._closed:
            self._write_if_due()

    def relabel(self, results: Sequence[TrialResult]) -> None:
        """One transaction; status and error stay."""
        sweep, table = self._opened()
        self._conclude({result.trial_id: result for result in results}, sweep, table, ended=False)

    def _conclude(
        self, results: Mapping[str, TrialResult], sweep: SweepRecord, table: RunTable, *, ended: bool
    ) -> None:
        """Write phases and observations in place of earlier ones, and, where trials have ended, their status."""
        if not results:
            return
        with self._writing():
            found = table.locate([trial for trial in results if trial not in self._open])[0]
            concluded, replaced = Concluded(), []
            for trial, result in results.items():
                run = self._open.get(trial) or found.get(trial)
                if run is None:
                    raise LookupError(f"trial {trial} was never begun")
                if not run.fresh:
                    replaced.append(run.run_id)
                concluded.add(result, run, sweep.thresholds, ended=ended)
            self._check_there(concluded.run_ids)
            if replaced:
                keep = () if ended else layout.KEPT_TAGS
                table.forget_results(replaced, [key for key in layout.RESULT_TAGS if key not in keep])
            concluded.write(table.bulk, _now_ms())

    def reconcile(self) -> int:
        """One statement ends them, one makes good the latest metrics that a dead driver was late with."""
        _, table = self._driven()
        bulk = table.bulk
        self._write_all()
        orphans = table.orphans(self._parent.run_id)
        ids = list(orphans.values())
        if ids:
            with bulk.transaction():
                bulk.execute("UPDATE runs SET status = 'KILLED', end_time = ? WHERE run_uuid $in", _now_ms(), ids)
                bulk.rebuild_latest(ids)
        for trial in orphans:
            self._open.pop(trial, None)
            self._late.discard(trial)
        return len(ids)

    def attach(self, files: Mapping[str, Path]) -> None:
        """By MLflow's artifact repository for the experiment's artifact location."""
        self._opened()
        upload_to(self._database.artifacts_of(self._parent.run_id), files, experiment=self._database.experiment)

    def detach(self, paths: Iterable[str]) -> tuple[str, ...]:
        """By MLflow's artifact repository for the experiment's artifact location."""
        self._opened()
        return delete_from(self._database.artifacts_of(self._parent.run_id), paths)

    def annotate(self, metrics: Mapping[str, float]) -> None:
        """One transaction."""
        with self._annotating(metrics):
            pass

    def trace(self, name: str, points: Iterable[tuple[int, float]]) -> None:
        """One transaction, which waits for that of another process that traces for the same sweep."""
        _, table = self._opened()
        layout.check_metric_names([name])
        given, bulk, run = list(points), table.bulk, self._parent
        if not given:
            return
        with bulk.transaction():
            if not bulk.execute("UPDATE runs SET name = name WHERE run_uuid = ?", run.run_id):
                raise self._removed(1)
            new = later(given, table.traced(run, [name]).get(name, -1))
            if new:
                table.forget_annotated(run, [name])
                rows = traced_rows(run, name, new)
                bulk.metrics(rows)
                bulk.latest(rows[-1:])

    def end_sweep(self, status: str, metrics: Mapping[str, float]) -> None:
        """One transaction: status and metrics are never apart."""
        self._driven()
        with self._annotating(metrics):
            self._set_status(Status(status).value, _now_ms())

    @contextmanager
    def _annotating(self, metrics: Mapping[str, float]) -> Iterator[None]:
        _, table = self._opened()
        layout.check_metric_names(metrics)
        bulk, run = table.bulk, self._parent
        self._write_all()
        with bulk.transaction():
            curves = table.traced(run, list(metrics))
            own = [(name, float(value)) for name, value in metrics.items() if name not in curves]
            rows = observed_rows(run, own)
            table.forget_annotated(run, [name for name, _ in own])
            bulk.metrics(rows)
            bulk.latest(rows)
            yield

    def _set_status(self, status: str, end_time: int | None) -> None:
        """Of the parent run, in the transaction that is under way."""
        self._database.create().bulk.execute(
            "UPDATE runs SET status = ?, end_time = ? WHERE run_uuid = ?", status, end_time, self._parent.run_id
        )

    def close(self) -> None:
        """Write the latest metrics that are late and close the connections."""
        if self._closed:
            return
        self._write_all()
        self._database.close()
        self._closed = True

    def _waits(self) -> bool:
        return bool(self._waiting.rows or self._begun_waiting.runs or self._ended_waiting.run_ids)

    def _write_if_due(self) -> None:
        """What waits, if it is much or has waited for its time."""
        now, bulk = time.monotonic(), self._opened()[1].bulk
        trials = len(self._begun_waiting.runs) + len(self._ended_waiting.run_ids)
        much = self._waiting.rows >= bulk.ROWS_A_WRITE or trials >= TRIALS_A_WRITE
        if much or (self._waits() and now - self._written_at > WRITE_EVERY_S):
            with self._writing(latest=now - self._latest_at > LATEST_EVERY_S):
                pass

    def _write_all(self) -> None:
        """Everything that waits, in a transaction of its own."""
        if self._waits() or self._late:
            with self._writing(latest=True):
                pass

    @contextmanager
    def _writing(self, *, latest: bool = False) -> Iterator[None]:
        """A transaction that begins with what waits, and with the latest metrics that are late if `latest`.

        New runs come first, then rows, then what trials ended as. All of it waits on where the
        transaction fails, so that no curve has a gap.
        """
        bulk = self._opened()[1].bulk
        with bulk.transaction():
            self._begun_waiting.write(bulk)
            if self._waits():
                self._check_there([*self._waiting.run_ids, *self._ended_waiting.run_ids])
            if self._waiting.rows:
                bulk.metric_block(self._waiting.block(), runs_checked=True)
            late = [row for trial in self._late for row in latest_of(self._open[trial])] if latest else []
            self._ended_waiting.write(bulk, _now_ms(), late)
            yield
        self._written_at = time.monotonic()
        self._waiting.clear()
        self._begun_waiting, self._ended_waiting = Begun(), Concluded()
        self._ended_unwritten.clear()
        if latest:
            for trial in self._late:
                self._open[trial].latest.clear()
            self._late.clear()
            self._latest_at = self._written_at

    def _run_row(self, run: OpenRun, name: str) -> tuple[Any, ...]:
        return run_row(
            run.run_id,
            name=name,
            user=layout.user(),
            start_time=run.start_time,
            artifacts=self._database.artifacts_of(run.run_id),
            experiment_id=self._database.create().experiment_id,
            status=run.status,
        )

    def _existing(self) -> RunTable | None:
        """The experiment's runs, for reading what is there."""
        self._check_open()
        self._write_all()
        return self._database.existing()

    def _opened(self) -> tuple[SweepRecord, RunTable]:
        self._check_open()
        if self._sweep is None:
            raise RuntimeError("open_sweep comes before anything is written")
        return self._sweep, self._database.create()

    def _driven(self) -> tuple[SweepRecord, RunTable]:
        opened = self._opened()
        if not self._running:
            raise RuntimeError("open_sweep(..., running=True) comes before trials are run")
        return opened

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the tracker is closed")

    def _check_there(self, run_ids: Sequence[str]) -> None:
        missing = self._opened()[1].bulk.missing_runs(run_ids)
        if missing:
            raise self._removed(missing)

    def _removed(self, runs: int) -> UserError:
        return UserError(
            f"{runs} runs of this sweep were removed from the tracking database while it ran",
            place=self._database.place,
            next_step="run the same command again: their trials are run anew",
        )

    def _begun(self, trial: str) -> OpenRun:
        try:
            return self._open[trial]
        except KeyError:
            raise LookupError(f"trial {trial} was never begun") from None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
