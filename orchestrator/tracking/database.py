"""A tracker that writes MLflow's database itself: bulk statements in this process, without a server.

Reading does not import mlflow (3 s) and creates nothing: without a database or an experiment, nothing is recorded yet.
`open_sweep` creates what is missing, by MLflow's own code.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jobs.job import Curves
from orchestrator.errors import UserError
from orchestrator.outages import Kind, kind_of, reason
from orchestrator.records import CurveRows, Recorded, Status, TrialResult
from orchestrator.tracking import layout
from orchestrator.tracking.address import database_address
from orchestrator.tracking.artifacts import delete_from, upload_to
from orchestrator.tracking.base import (
    RecordTracker,
    Refusal,
    Refused,
    SweepRecord,
    TrialRow,
    begun,
    check_metric_names,
)
from orchestrator.tracking.bulk_sql import Bulk, Row, run_row
from orchestrator.tracking.connection import Database
from orchestrator.tracking.metric_block import MetricRow
from orchestrator.tracking.rows import RowBuffer, TrialRows, later, new_rows, note
from orchestrator.tracking.run_table import CHUNK, OpenRun, RunTable, chunked
from orchestrator.trial import Trial

WRITE_EVERY_S = 0.25
"""Longest time that rows and trials are buffered; those of a slow job are written at once."""

TRIALS_A_WRITE = 4_000

LATEST_EVERY_S = 2.0
"""`latest_metrics` of running trials is written this often, and when a trial ends."""

_READ_TAGS = (layout.PHASE, layout.THRESHOLDS, layout.OBSERVATIONS)


class DatabaseTracker(RecordTracker):
    """The record in a SQLite or PostgreSQL database with MLflow's schema.

    Args:
        uri: `sqlite:///file`, `postgresql://...`, with or without the prefix `phasefront-`.
        experiment: Name of the MLflow experiment.
        artifacts: Artifact location of the experiment, if it has to be created.
        place: Where the user wrote the address, for messages.
    """

    def __init__(self, uri: str, *, experiment: str, artifacts: str | None = None, place: str = "tracking.uri") -> None:
        address = database_address(uri, place=place)
        self._database = Database(address, experiment=experiment, artifacts=artifacts, place=place)
        self._parent = OpenRun(run_id="", status="", start_time=0)
        self._open: dict[str, OpenRun] = {}
        """Begun trials that have not ended."""
        self._late: set[str] = set()
        """Those whose latest metrics are not written yet."""
        self._latest_at = time.monotonic()
        self._buffer = RowBuffer()
        self._waiting = TrialRows()
        self._ended_unwritten: dict[str, str] = {}
        """Trials whose result is in `_waiting`, with their runs."""
        self._written_at = 0.0

    @property
    def experiment_id(self) -> str | None:
        """At most one query."""
        table = self._database.existing()
        return None if table is None else str(table.experiment_id)

    @property
    def sweep_start_ms(self) -> int:
        return self._parent.start_time

    def _open_parent(self, sweep: SweepRecord, running: bool) -> str:
        """What is missing is created by MLflow's own code."""
        table = self._database.create()
        if running:
            self._database.take(self.say)
            table.refresh()  # a driver over HTTP may have begun trials until it let go of the lease
            self._database.check_tables()
        bulk, now, name = table.bulk, layout.now_ms(), sweep.name[: layout.LONGEST_NAME]
        with bulk.transaction():
            found, free = table.locate([sweep.sweep_id], key=layout.SWEEP_ID)
            if sweep.sweep_id in found:
                self._parent = found[sweep.sweep_id]
                bulk.execute("UPDATE runs SET name = ? WHERE run_uuid = ?", name, self._parent.run_id)
                if running:
                    self._set_status(Status.RUNNING, None)
            else:
                self._parent = OpenRun(run_id=free[sweep.sweep_id], status="RUNNING", start_time=now)
                bulk.new_runs([self._run_row(self._parent, name)])
                text = layout.description(sweep, str(table.experiment_id), self._parent.run_id)
                bulk.tags([(layout.DESCRIPTION, text, self._parent.run_id)])
                if not running:
                    self._set_status(Status.FINISHED, now)
            bulk.tags([(key, value, self._parent.run_id) for key, value in layout.sweep_tags(sweep, running=running)])
        return self._parent.run_id

    def find_sweep(self, sweep_id: str) -> str | None:
        """One statement."""
        table = self._existing()
        found = {} if table is None else table.locate([sweep_id], key=layout.SWEEP_ID)[0]
        return found[sweep_id].run_id if sweep_id in found else None

    def trials_of(self, sweep_id: str) -> list[str]:
        """Two statements."""
        table, parent = self._existing(), self.find_sweep(sweep_id)
        return [] if table is None or parent is None else list(table.nested(parent))

    def index(self, trial_ids: Iterable[str]) -> dict[str, Recorded]:
        """Three statements for 10,000 trials: runs, tags, and the last steps of unfinished ones."""
        self._existing()
        return {trial: recorded for trial, _, _, recorded in self._read(trial_ids, _READ_TAGS)}

    def statuses(self, trial_ids: Iterable[str]) -> dict[str, Status]:
        """One statement for 10,000 trials."""
        table = self._existing()
        chunks = chunked(trial_ids, CHUNK) if table is not None else ()
        found = (table.locate(chunk)[0] for chunk in chunks if table is not None)
        return {trial: layout.status_of(run.status) for runs in found for trial, run in runs.items()}

    def rows(self, trial_ids: Iterable[str], *, settings: bool = True) -> Iterator[TrialRow]:
        keys = (*_READ_TAGS, *(layout.SETTING_TAGS if settings else ()))
        for trial, run, tags, recorded in self._read(trial_ids, keys, errors=True):
            yield layout.trial_row(trial, run.run_id, tags, recorded)

    def _read(
        self, trial_ids: Iterable[str], keys: Sequence[str], *, errors: bool = False
    ) -> Iterator[tuple[str, OpenRun, dict[str, str], Recorded]]:
        """Run, tags and state of the recorded ones of these trials, with the errors of those that have not finished."""
        for number, chunk in enumerate(chunked(trial_ids, CHUNK)):
            table = self._existing(refresh=not number)
            if table is None:
                return
            found, _ = table.locate(chunk)
            tags = table.tags([run.run_id for run in found.values()], keys)
            unfinished = [run.run_id for run in found.values() if run.status != "FINISHED"]
            through = table.through_steps(unfinished)
            if errors and unfinished:
                for run_id, failed in table.tags(unfinished, [layout.ERROR]).items():
                    tags[run_id] |= failed
            wanted = [trial for trial in dict.fromkeys(chunk) if trial in found]
            of_runs = [tags[found[trial].run_id] for trial in wanted]
            observed = layout.decode_all_observations([of_run.get(layout.OBSERVATIONS) for of_run in of_runs])
            for trial, of_run, own in zip(wanted, of_runs, observed, strict=True):
                run = found[trial]
                yield trial, run, of_run, layout.recorded(run.status, of_run, through.get(run.run_id, -1), own)

    def curves(self, trial_ids: Iterable[str], metrics: Sequence[str] | None = None) -> Iterator[tuple[str, Curves]]:
        table = self._existing()
        if table is None:
            return
        for chunk in chunked(trial_ids, CHUNK):
            found, _ = table.locate(chunk)
            runs = {trial: found[trial].run_id for trial in dict.fromkeys(chunk) if trial in found}
            yield from table.curves(runs, metrics)

    def begin(self, trials: Sequence[Trial]) -> None:
        """All trials are begun, or none; new ones are buffered."""
        sweep, table = self._driven(), self._database.create()
        wanted = {trial.id: trial for trial in trials}
        if not self._ended_unwritten.keys().isdisjoint(wanted):
            self._write_all()
        found, free = table.locate([trial for trial in wanted if trial not in self._open])
        now, new, rows = layout.now_ms(), {}, TrialRows()
        for trial, run_id in free.items():
            new[trial] = run = OpenRun(run_id=run_id, status="RUNNING", start_time=now, fresh=True)
            tags = layout.trial_tags(wanted[trial], sweep, self._parent.run_id)
            rows.runs.append(self._run_row(run, tags[0][1]))
            rows.tags += [(key, value, run_id) for key, value in tags]
            rows.params += [(key, value, run_id) for key, value in layout.params(wanted[trial])]
            rows.axes += run.axis_rows(layout.axis_metrics(wanted[trial], sweep.axes))
        known = {**found, **{trial: self._open[trial] for trial in wanted if trial in self._open}}
        self._waiting.take(rows)
        self._open.update(new)
        if known:
            axes = {trial: layout.axis_metrics(wanted[trial], sweep.axes) for trial in known}
            self._begin_known(table, found, known, axes)
        else:
            self._write_if_due()

    def _begin_known(
        self,
        table: RunTable,
        found: Mapping[str, OpenRun],
        known: Mapping[str, OpenRun],
        axes: Mapping[str, Sequence[tuple[str, float]]],
    ) -> None:
        """Begin trials that have a run: `found` in the database, the others begun by this tracker."""
        again = {trial: run for trial, run in known.items() if run.status != "FINISHED"}
        self._write_all()
        with table.bulk.transaction():
            if again:
                self._check_there([run.run_id for run in again.values()])
                table.restart([run.run_id for run in again.values()], self._parent.run_id)
                table.bulk.once([row for trial, run in again.items() for row in run.axis_rows(axes[trial])])
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
        """The rows are buffered; one transaction writes a step with all its metrics or not at all.

        Every method that reads writes the buffer first.
        """
        self._driven()
        new = new_rows(rows, self._open)
        if new is None:
            return
        rows, runs = new
        self._buffer.add(rows, runs)
        note(rows, runs)
        self._late.update(rows.trial_ids[position] for position in np.unique(rows.trial).tolist())
        self._write_if_due()

    def end(self, results: Sequence[TrialResult]) -> None:
        """One transaction writes status, observations and phase of a trial, after or with its rows."""
        thresholds = self._driven().thresholds
        last = {result.trial_id: result for result in results}
        if all(trial in self._open and self._open[trial].fresh for trial in last):
            rows = TrialRows()
            for trial, result in last.items():
                rows.add_result(result, self._open[trial], thresholds, ended=True)
            self._waiting.take(rows)
            self._ended_unwritten.update({trial: self._open[trial].run_id for trial in last})
        else:
            self._replace_results(last, thresholds, ended=True)
        for trial in last:
            self._open.pop(trial, None)
            self._late.discard(trial)
        self._write_if_due()

    def settle(self) -> None:
        if self._running and not self._closed:
            if self._database.lease is not None and self._database.lease.lost:
                self._database.check_lease()
            self._write_if_due()

    def settled(self) -> bool:
        return not self._waits()

    def relabel(self, results: Sequence[TrialResult]) -> None:
        """One transaction; status and error stay."""
        thresholds = self._opened().thresholds
        self._replace_results({result.trial_id: result for result in results}, thresholds, ended=False)

    def complete(self, trials: Sequence[Trial]) -> int:
        """One statement finds what is missing of 10,000 trials, one transaction adds it."""
        axes, completed = self._opened().axes, 0
        names = [name for name in map(layout.axis_metric, axes) if name is not None]
        if not names:
            return 0
        table = self._database.create()
        self._write_all()
        for chunk in chunked(trials, CHUNK):
            found = table.locate([trial.id for trial in chunk])[0]
            there = table.has_metrics([run.run_id for run in found.values()], names)
            rows = [
                row
                for trial in chunk
                if trial.id in found
                for row in found[trial.id].axis_rows(layout.axis_metrics(trial, axes))
                if (row[-1], row[0]) not in there
            ]
            runs = list(dict.fromkeys(row[-1] for row in rows))
            if runs:
                with table.bulk.transaction():
                    self._check_there(runs)
                    table.bulk.once(rows)
            completed += len(runs)
        return completed

    def _replace_results(self, results: Mapping[str, TrialResult], thresholds: str, *, ended: bool) -> None:
        """Replace phases and observations and, if the trials have ended, their status."""
        if not results:
            return
        table = self._database.create()
        self._write_all()
        with table.bulk.transaction():
            found = table.locate([trial for trial in results if trial not in self._open])[0]
            rows, replaced = TrialRows(), []
            for trial, result in results.items():
                run = self._open.get(trial) or begun(found, trial)
                if not run.fresh:
                    replaced.append(run.run_id)
                rows.add_result(result, run, thresholds, ended=ended)
            self._check_there(rows.run_ids)
            if replaced:
                keep = () if ended else layout.KEPT_TAGS
                table.forget_results(replaced, [key for key in layout.RESULT_TAGS if key not in keep])
            rows.write(table.bulk, layout.now_ms())

    def reconcile(self) -> int:
        """One statement ends them, one computes the latest metrics that the driver did not write before it died."""
        self._driven()
        table, bulk = self._database.create(), self._database.create().bulk
        self._write_all()
        orphans = table.nested(self._parent.run_id, running=True)
        ids = list(orphans.values())
        if ids:
            with bulk.transaction():
                end = "UPDATE runs SET status = 'KILLED', end_time = ? WHERE run_uuid $in"
                bulk.execute(end, layout.now_ms(), ids)
                bulk.rebuild_latest(ids)
        for trial in orphans:
            self._open.pop(trial, None)
            self._late.discard(trial)
        return len(ids)

    def attach(self, files: Mapping[str, Path]) -> None:
        self._opened()
        self._database.check_lease()
        upload_to(self._database.artifacts_of(self._parent.run_id), files, experiment=self._database.experiment)

    def detach(self, paths: Iterable[str]) -> tuple[str, ...]:
        self._opened()
        self._database.check_lease()
        return delete_from(self._database.artifacts_of(self._parent.run_id), paths)

    def describe(self, text: str) -> None:
        self._opened()
        bulk = self._database.create().bulk
        with bulk.transaction():
            self._check_there([self._parent.run_id])
            bulk.tags([(layout.DESCRIPTION, text[: layout.LONGEST_TAG], self._parent.run_id)])

    def trace(self, name: str, points: Iterable[tuple[int, float]]) -> None:
        """One transaction, which waits for that of another process that traces for the same sweep."""
        self._opened()
        check_metric_names([name])
        given, table, run = list(points), self._database.create(), self._parent
        if not given:
            return
        with table.bulk.transaction():
            if not table.bulk.execute("UPDATE runs SET name = name WHERE run_uuid = ?", run.run_id):
                raise self._removed(1)
            new = later(given, table.traced(run, [name]).get(name, -1))
            if new:
                table.forget_annotated(run, [name])
                rows = run.curve_rows(name, new)
                table.bulk.metrics(rows)
                table.bulk.latest(rows[-1:])

    def _annotate(self, metrics: Mapping[str, float], status: Status | None) -> None:
        """One transaction."""
        table, run = self._database.create(), self._parent
        self._write_all()
        with table.bulk.transaction():
            curves = table.traced(run, list(metrics))
            own = {name: float(value) for name, value in metrics.items() if name not in curves}
            rows = run.observed_rows(own.items())
            table.forget_annotated(run, list(own))
            table.bulk.metrics(rows)
            table.bulk.latest(rows)
            if status is not None:
                self._set_status(status, layout.now_ms())

    def _set_status(self, status: Status, end_time: int | None) -> None:
        """Set the parent run's status in the current transaction."""
        update = "UPDATE runs SET status = ?, end_time = ? WHERE run_uuid = ?"
        self._database.create().bulk.execute(update, status.value, end_time, self._parent.run_id)

    def flush(self) -> None:
        self._check_open()
        self._write_all()

    def reconnect(self) -> None:
        self._check_open()
        self._database.reconnect()
        self._write_all()

    def cut_if_hung(self) -> None:
        self._database.cut_if_hung()

    def abandon(self) -> None:
        """The lease expires if the database does not answer."""
        self._closed = True
        self._database.close()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._write_all()
        finally:
            self._database.close()

    def _waits(self) -> bool:
        return bool(self._buffer.rows or self._waiting.runs or self._waiting.results)

    def _write_if_due(self) -> None:
        """Write the buffer if it is large or old enough."""
        now = time.monotonic()
        trials = len(self._waiting.runs) + len(self._waiting.results)
        large = self._buffer.rows >= self._database.create().bulk.ROWS_A_WRITE or trials >= TRIALS_A_WRITE
        if large or (self._waits() and now - self._written_at > WRITE_EVERY_S):
            self._write(latest=now - self._latest_at > LATEST_EVERY_S)

    def _write_all(self) -> None:
        """Write the whole buffer, in a transaction of its own."""
        if self._waits() or self._late:
            self._write(latest=True)

    def _write(self, *, latest: bool) -> None:
        """Write the buffer and, if `latest`, the latest metrics of running trials, in one transaction.

        New runs come first, then rows, then results. If the transaction fails, everything stays in the buffer, so that
        no curve has a gap.

        Raises:
            Refused: The database cannot hold a value of these trials; everything else is written.
        """
        bulk = self._database.create().bulk
        late = [row for trial in self._late for row in self._open[trial].latest_rows()] if latest else []
        refused: list[Refusal] = []
        try:
            with bulk.transaction():
                self._put(bulk, self._buffer, self._waiting, late)
        except Exception as error:  # of any database driver
            if kind_of(error) is not Kind.DATA:
                raise
            self._narrow(bulk, late, refused)
        self._written_at = time.monotonic()
        self._buffer.clear()
        self._waiting = TrialRows()
        self._ended_unwritten.clear()
        if latest:
            for trial in self._late:
                self._open[trial].latest.clear()
            self._late.clear()
            self._latest_at = self._written_at
        for refusal in refused:
            self._late.discard(refusal.trial_id)
            if refusal.trial_id in self._open:
                self._open[refusal.trial_id].latest.clear()
        if refused:
            raise Refused(refused)

    def _put(self, bulk: Bulk, buffer: RowBuffer, waiting: TrialRows, late: Sequence[MetricRow]) -> None:
        """Write these rows in the current transaction."""
        bulk.new_runs(waiting.runs)
        if buffer.rows or waiting.runs or waiting.results:
            self._check_there([*buffer.run_ids, *waiting.run_ids])
        if buffer.rows:
            bulk.metric_block(buffer.block(), runs_checked=True)
        waiting.write(bulk, layout.now_ms(), late)

    def _narrow(self, bulk: Bulk, late: Sequence[MetricRow], refused: list[Refusal]) -> None:
        """Write the buffer in parts, each in a transaction, to find the trials whose values the database refuses."""
        trials = {run.run_id: trial for trial, run in self._open.items()}
        trials |= {run: trial for trial, run in self._ended_unwritten.items()}
        ended = {run: status for status, run in self._waiting.results}
        phases = {run: str(label) for key, label, run in self._waiting.tags if key == layout.PHASE}

        def write(runs: list[str]) -> None:
            of = frozenset(runs)
            try:
                with bulk.transaction():
                    rows = [row for row in late if row[-1] in of]
                    self._put(bulk, self._buffer.of(of), self._waiting.of(of), rows)
            except Exception as error:  # of any database driver
                if kind_of(error) is not Kind.DATA:
                    raise
                if len(runs) > 1:
                    middle = len(runs) // 2
                    write(runs[:middle])
                    write(runs[middle:])
                    return
                with bulk.transaction():
                    self._put(bulk, RowBuffer(), self._waiting.of(of).begun(), ())
                trial = trials.get(runs[0], runs[0])
                status, phase = ended.get(runs[0]), phases.get(runs[0])
                refused.append(Refusal(trial_id=trial, error=reason(error), ended_as=status, phase=phase))

        write(list(dict.fromkeys([*self._waiting.all_runs, *self._buffer.run_ids, *(row[-1] for row in late)])))

    def _run_row(self, run: OpenRun, name: str) -> Row:
        artifacts, experiment = self._database.artifacts_of(run.run_id), self._database.create().experiment_id
        return run_row(run.run_id, name, layout.user(), run.start_time, artifacts, experiment)

    def _existing(self, *, refresh: bool = True) -> RunTable | None:
        """The experiment's runs for reading, with all that this tracker has written; None if there are none.

        Without `refresh`, those of a driver over HTTP are known as of the last time: it reads the table of all runs.
        """
        self._check_open()
        self._write_all()
        table = self._database.existing()
        if table is not None and refresh and not self._running:  # this driver's lease keeps others out
            table.refresh()
        return table

    def _check_there(self, run_ids: Sequence[str]) -> None:
        missing = self._database.create().bulk.missing_runs(run_ids)
        if missing:
            raise self._removed(missing)

    def _removed(self, runs: int) -> UserError:
        return UserError(
            f"{runs} runs of this sweep were removed from the tracking database while it ran",
            place=self._database.place,
            next_step="run the same command again: these trials run again",
        )
