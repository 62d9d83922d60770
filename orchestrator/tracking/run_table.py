"""The trials of an experiment in MLflow's tables: set-based queries for their runs, results and curves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import itemgetter
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from jobs.job import Curves
from orchestrator.tracking import layout
from orchestrator.tracking.bulk_sql import Bulk
from orchestrator.tracking.metric_block import MetricRow

CHUNK = 10_000
"""Trials looked up in one statement."""

CLOCKS_MS = 60_000
"""How far the clocks of an experiment's drivers may differ."""

CURVE_ROWS = 200_000
"""Curve rows in memory at a time."""

_OBSERVED = (
    "EXISTS (SELECT 1 FROM runs r WHERE r.run_uuid = {table}.run_uuid AND {table}.timestamp < r.start_time "
    f"AND {{table}}.timestamp <> r.start_time - {layout.AXIS_BEFORE_MS})"
)
"""Condition on rows that are observations: neither points of a curve nor values on the axes."""

Point = tuple[int, float]
T = TypeVar("T")


def chunked(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size` items, in order."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


@dataclass(slots=True)
class OpenRun:
    """The run of a trial as the writer knows it."""

    run_id: str
    status: str
    start_time: int
    """ms since the epoch."""
    through_step: int = -1
    """The last step whose rows are written or buffered."""
    fresh: bool = False
    """Begun by this process and not ended since: no result has to be replaced."""
    latest: dict[tuple[str, ...], tuple[int, NDArray[np.float64]]] = field(default_factory=dict)
    """Metric names -> their last recorded step and its values, not yet in `latest_metrics`."""

    def row(self, name: str, value: float, timestamp: int, step: int) -> MetricRow:
        """One row of a metric."""
        number, is_nan = layout.as_stored(value)
        return name, number, timestamp, step, is_nan, self.run_id

    def curve_rows(self, name: str, points: Iterable[Point]) -> list[MetricRow]:
        """Points of a curve as rows."""
        return [self.row(name, value, self.start_time + step, step) for step, value in points]

    def observed_rows(self, observed: Iterable[tuple[str, float]]) -> list[MetricRow]:
        """Observations as rows with a time before the run's start (see `layout`)."""
        return [self.row(name, value, self.start_time - layout.OBSERVED_BEFORE_MS, 0) for name, value in observed]

    def axis_rows(self, values: Iterable[tuple[str, float]]) -> list[MetricRow]:
        """Values on the axes (`layout.axis_metrics`) as rows."""
        return [self.row(name, value, self.start_time - layout.AXIS_BEFORE_MS, 0) for name, value in values]

    def latest_rows(self) -> list[MetricRow]:
        """The newest row of each metric that was recorded since `latest` was cleared."""
        newest: dict[str, Point] = {}
        for metrics, (step, values) in self.latest.items():
            for name, value in zip(metrics, values.tolist(), strict=True):
                if name not in newest or step > newest[name][0]:
                    newest[name] = (step, value)
        return [self.row(name, value, self.start_time + step, step) for name, (step, value) in newest.items()]


class RunTable:
    """The runs of one experiment in one database."""

    def __init__(self, bulk: Bulk, experiment_id: int) -> None:
        self.bulk = bulk
        self.experiment_id = experiment_id
        self._elsewhere: dict[str, dict[str, str]] = {layout.TRIAL_ID: {}, layout.SWEEP_ID: {}}
        """Tag -> trial or sweep id -> a run with an id from MLflow's server (the sweep was recorded over HTTP)."""
        self._read_ms = 0
        """When they were last looked for."""
        self.refresh()

    def refresh(self) -> None:
        """Find the runs that a driver over HTTP has begun since; cheap where there are none."""
        since_ms, self._read_ms = max(self._read_ms - CLOCKS_MS, 0), layout.now_ms()
        for key, known in self._elsewhere.items():
            new = self._named_by_server(key, since_ms)
            if any(known.get(identity, run) != run for identity, run in new.items()):  # of several, which one counts?
                new = self._named_by_server(key, 0)
            known.update(new)

    def _named_by_server(self, key: str, since_ms: int) -> dict[str, str]:
        return dict(
            self.bulk.query(
                # SQLite reads the tables of a CROSS JOIN in this order: it looks up the tags of new runs alone.
                "SELECT t.value, r.run_uuid FROM runs r CROSS JOIN tags t WHERE t.run_uuid = r.run_uuid AND t.key = ? "
                "AND r.experiment_id = ? AND r.lifecycle_stage = 'active' AND COALESCE(r.start_time, 0) >= ? "
                "AND substr(r.run_uuid, 1, 24) <> substr(t.value, 1, 24) "
                # Finished runs come last, so that one of them is kept if a trial has several.
                "ORDER BY CASE r.status WHEN 'FINISHED' THEN 1 ELSE 0 END, r.start_time",
                key,
                self.experiment_id,
                since_ms,
            )
        )

    def locate(
        self, identities: Iterable[str], *, key: str = layout.TRIAL_ID
    ) -> tuple[dict[str, OpenRun], dict[str, str]]:
        """The runs of these trials (or sweeps), and for those without one the run id to use.

        A run that the user has deleted in MLflow is ignored: the trial's next run id is tried.
        """
        found: dict[str, OpenRun] = {}
        free: dict[str, str] = {}
        elsewhere = self._elsewhere[key]
        attempt, pending = 0, list(dict.fromkeys(identities))
        while pending:
            wanted = {
                (elsewhere.get(identity) if attempt == 0 else None)
                or layout.run_id(identity, self.experiment_id, max(0, attempt - (identity in elsewhere))): identity
                for identity in pending
            }
            select = "SELECT run_uuid, status, start_time, lifecycle_stage, experiment_id FROM runs WHERE run_uuid $in"
            taken = {row[0]: row for chunk in chunked(wanted, CHUNK) for row in self.bulk.query(select, chunk)}
            pending = []
            for run, identity in wanted.items():
                if run not in taken:
                    free[identity] = run
                    continue
                _, status, start, stage, experiment = taken[run]
                if stage == "active" and experiment == self.experiment_id:
                    found[identity] = OpenRun(run_id=run, status=status, start_time=int(start or 0))
                else:
                    pending.append(identity)
            attempt += 1
        return found, free

    def through_steps(self, run_ids: Sequence[str]) -> dict[str, int]:
        """The last recorded step of each run's curves; runs without rows are left out."""
        select = (
            "SELECT m.run_uuid, MAX(m.step) FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid "
            "WHERE m.run_uuid $in AND m.timestamp >= r.start_time GROUP BY m.run_uuid"
        )
        return {run: step for chunk in chunked(run_ids, CHUNK) for run, step in self.bulk.query(select, chunk)}

    def tags(self, run_ids: Sequence[str], keys: Sequence[str]) -> dict[str, dict[str, str]]:
        """Tags of runs: run id -> key -> value."""
        tags: dict[str, dict[str, str]] = {run: {} for run in run_ids}
        select = "SELECT run_uuid, key, value FROM tags WHERE run_uuid $in AND key $in"
        # In the order of the index, neighbouring entries are in the same pages.
        for run, key, value in self.bulk.query(select, sorted(run_ids), list(keys)):
            tags[run][key] = value
        return tags

    def nested(self, parent: str, *, running: bool = False) -> dict[str, str]:
        """Trial id -> run id of the trials under a sweep's parent run, all of them or only the RUNNING ones."""
        status = "AND r.status = 'RUNNING' " if running else ""
        select = (
            "SELECT t.value, r.run_uuid FROM runs r JOIN tags p ON p.run_uuid = r.run_uuid AND p.key = ? "
            "JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = ? WHERE r.experiment_id = ? "
            f"AND r.lifecycle_stage = 'active' {status}AND p.value = ? ORDER BY r.start_time, t.value"
        )
        return dict(self.bulk.query(select, layout.PARENT, layout.TRIAL_ID, self.experiment_id, parent))

    def has_metrics(self, run_ids: Sequence[str], names: Sequence[str]) -> set[tuple[str, str]]:
        """(run id, metric) of these runs and metrics, where there is a value."""
        select = "SELECT run_uuid, key FROM latest_metrics WHERE run_uuid $in AND key $in"
        return {(run, key) for run, key in self.bulk.query(select, sorted(run_ids), list(names))}

    def restart(self, run_ids: Sequence[str], parent: str) -> None:
        """Reopen runs as new ones under this parent, without rows, observations and results."""
        ids = list(run_ids)
        self.bulk.execute("DELETE FROM tags WHERE run_uuid $in AND key $in", ids, list(layout.RESULT_TAGS))
        for table in ("metrics", "latest_metrics"):
            self.bulk.execute(f"DELETE FROM {table} WHERE run_uuid $in", ids)
        self.bulk.execute("UPDATE runs SET status = 'RUNNING', end_time = NULL WHERE run_uuid $in", ids)
        self.bulk.tags([(layout.PARENT, parent, run) for run in ids])

    def forget_results(self, run_ids: Sequence[str], tags: Sequence[str]) -> None:
        """Delete tags and the metrics that are observations."""
        self.bulk.execute("DELETE FROM tags WHERE run_uuid $in AND key $in", list(run_ids), list(tags))
        for table in ("metrics", "latest_metrics"):
            observed = _OBSERVED.format(table=table)
            self.bulk.execute(f"DELETE FROM {table} WHERE run_uuid $in AND {observed}", list(run_ids))

    def traced(self, run: OpenRun, names: Sequence[str]) -> dict[str, int]:
        """The last step of each of these metrics that is a curve of the sweep itself (see `Tracker.trace`)."""
        select = "SELECT key, step FROM latest_metrics WHERE run_uuid = ? AND key $in AND timestamp = ? + step"
        return dict(self.bulk.query(select, run.run_id, list(names), run.start_time))

    def forget_annotated(self, run: OpenRun, names: Sequence[str]) -> None:
        """Delete the rows of these metrics that are not points of a curve, whichever tracker wrote them."""
        for table in ("metrics", "latest_metrics"):
            delete = f"DELETE FROM {table} WHERE run_uuid = ? AND key $in AND timestamp <> ? + step"
            self.bulk.execute(delete, run.run_id, list(names), run.start_time)

    def curves(self, runs: Mapping[str, str], metrics: Sequence[str] | None = None) -> Iterator[tuple[str, Curves]]:
        """The curves of trials (trial id -> run id), a bounded number of rows in memory at a time.

        Args:
            runs: Trial id -> run id.
            metrics: Those to read; None for all.
        """
        only, names = ("", []) if metrics is None else (" AND {}key $in", [list(metrics)])
        for chunk in chunked(runs.items(), CHUNK):
            count = f"SELECT run_uuid, COUNT(*) FROM metrics WHERE run_uuid $in{only.format('')} GROUP BY run_uuid"
            counts: dict[str, int] = dict(self.bulk.query(count, [run for _, run in chunk], *names))
            batch: dict[str, str] = {}
            rows = 0
            for trial, run in chunk:
                batch[run] = trial
                rows += counts.get(run, 0)
                if rows >= CURVE_ROWS:
                    yield from self._curves_of(batch, only.format("m."), names)
                    batch, rows = {}, 0
            yield from self._curves_of(batch, only.format("m."), names)

    def _curves_of(
        self, batch: Mapping[str, str], only: str, names: Sequence[list[str]]
    ) -> Iterator[tuple[str, Curves]]:
        if not batch:
            return
        rows = self.bulk.query(
            "SELECT m.run_uuid, m.key, m.step, m.value, m.is_nan FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid "
            f"WHERE m.run_uuid $in AND m.timestamp >= r.start_time{only} ORDER BY m.run_uuid, m.key, m.step",
            list(batch),
            *names,
        )
        found: dict[str, Curves] = {}
        for run, of_run in groupby(rows, key=itemgetter(0)):
            series = {}
            for key, points in groupby(of_run, key=itemgetter(1)):
                _, _, steps, values, is_nan = zip(*points, strict=True)
                series[key] = curve_series(steps, values, is_nan)
            found[run] = align(series)
        for run, trial in batch.items():
            if run in found:
                yield trial, found[run]


Series = tuple[NDArray[np.int64], NDArray[np.float64]]


def curve_series(steps: Sequence[int], values: Sequence[float], is_nan: Sequence[bool]) -> Series:
    """Stored rows of one metric as steps and measured values."""
    numbers = np.array(values, dtype=np.float64)
    infinite = np.abs(numbers) == layout.LARGEST  # as `layout.as_measured`
    numbers[infinite] = np.copysign(np.inf, numbers[infinite])
    numbers[np.array(is_nan, dtype=bool)] = np.nan
    return np.array(steps, dtype=np.int64), numbers


def series_of(points: Iterable[tuple[int, float]]) -> Series:
    """One metric's points as MLflow's API returns them, as steps and measured values."""
    steps, values = zip(*sorted(points), strict=True)
    return curve_series(steps, values, [False] * len(values))


def align(series: Mapping[str, Series]) -> Curves:
    """Metrics over the union of their steps; NaN where a metric was not reported."""
    first = next(iter(series.values()))[0]
    names = sorted(series)
    if all(np.array_equal(first, step) for step, _ in series.values()):
        return Curves(step=first, values={name: series[name][1] for name in names})
    steps = np.unique(np.concatenate([step for step, _ in series.values()]))
    values, present = {}, {}
    for name in names:
        step, value = series[name]
        at = np.searchsorted(steps, step)
        values[name], present[name] = np.full(len(steps), np.nan), np.zeros(len(steps), dtype=np.bool_)
        values[name][at], present[name][at] = value, True
    return Curves(step=steps, values=values, present=present)
