"""Curves, observations and the start and end of trials, as rows of MLflow's tables on their way to the database."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.job import LARGEST_STEP
from orchestrator.records import CurveRows, Status, TrialResult
from orchestrator.tracking import layout
from orchestrator.tracking.base import Refusal, Refused, begun, check_metric_names
from orchestrator.tracking.bulk_sql import Bulk, Row
from orchestrator.tracking.metric_block import MetricBlock, MetricRow
from orchestrator.tracking.run_table import OpenRun, Point


def new_rows(rows: CurveRows, open_runs: Mapping[str, OpenRun]) -> tuple[CurveRows, list[OpenRun]] | None:
    """The rows beyond each run's recorded step, with the runs of `rows.trial_ids`; None if there are none.

    Raises:
        UserError: A metric's name breaks MLflow's rule.
        LookupError: A trial was never begun.
        Refused: A step is larger than a database can hold.
    """
    check_metric_names(rows.metrics)
    if len(rows.step) and rows.step.max() > LARGEST_STEP:
        positions = np.unique(rows.trial[rows.step > LARGEST_STEP]).tolist()
        error = f"a step must be at most {LARGEST_STEP}"
        raise Refused([Refusal(trial_id=rows.trial_ids[position], error=error) for position in positions])
    runs = [begun(open_runs, trial) for trial in rows.trial_ids]
    through = np.array([run.through_step for run in runs], dtype=np.int64)
    new = rows.step > through[rows.trial]
    if not new.any():
        return None
    if new.all():
        return rows, runs
    present = rows.present[new] if rows.present is not None else None
    kept = replace(rows, trial=rows.trial[new], step=rows.step[new], values=rows.values[new], present=present)
    return kept, runs


class RowBuffer:
    """Rows to be written to `metrics`, kept as arrays; a large batch costs a database less than small ones."""

    def __init__(self) -> None:
        self._runs: dict[str, int] = {}
        self._metrics: dict[str, int] = {}
        self._parts: list[tuple[NDArray[Any], ...]] = []
        self.rows = 0
        """Number of buffered metric rows."""

    def add(self, rows: CurveRows, runs: Sequence[OpenRun]) -> None:
        """Add rows; `runs` are those of `rows.trial_ids`."""
        numbers = np.array([self._runs.setdefault(run.run_id, len(self._runs)) for run in runs], dtype=np.int64)
        codes = np.array([self._metrics.setdefault(name, len(self._metrics)) for name in rows.metrics], dtype=np.int64)
        start = np.array([run.start_time for run in runs], dtype=np.int64)
        if rows.present is None:
            r, k = np.divmod(np.arange(rows.values.size), len(rows.metrics))
        else:
            r, k = np.nonzero(rows.present)
        trial, step = rows.trial[r], rows.step[r]
        self._parts.append((numbers[trial], codes[k], start[trial] + step, step, rows.values[r, k]))
        self.rows += len(r)

    @property
    def run_ids(self) -> list[str]:
        """The runs of the buffered rows."""
        return list(self._runs)

    def of(self, runs: Collection[str]) -> RowBuffer:
        """The buffered rows of these runs."""
        part = RowBuffer()
        part._runs = {run: n for n, run in enumerate(run for run in self._runs if run in runs)}
        part._metrics = self._metrics
        number = np.array([part._runs.get(run, -1) for run in self._runs], dtype=np.int64)
        for run, *columns in self._parts:
            keep = number[run] >= 0
            if keep.any():
                part._parts.append((number[run[keep]], *(column[keep] for column in columns)))
                part.rows += int(keep.sum())
        return part

    def block(self) -> MetricBlock:
        """All buffered rows, in the order in which a database writes them fastest."""
        run, metric, timestamp, step, value = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        names, runs = tuple(self._metrics), tuple(self._runs)
        return MetricBlock(names, runs, metric, run, timestamp, step, *stored(value)).ordered()

    def clear(self) -> None:
        """Forget the rows, which have been written."""
        self._runs, self._metrics, self._parts, self.rows = {}, {}, [], 0


def stored(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Values as MLflow's tables hold them, with NaN as 0 and infinities clamped; and which are NaN."""
    is_nan = np.isnan(values)
    return np.clip(np.where(is_nan, 0.0, values), -layout.LARGEST, layout.LARGEST), is_nan


def note(rows: CurveRows, runs: Sequence[OpenRun]) -> None:
    """Raise the runs' recorded steps to those of the rows, and keep their newest values for `OpenRun.latest_rows`."""
    last = np.full(len(runs), -1, dtype=np.int64)
    last[rows.trial] = np.arange(len(rows.trial))
    steps = rows.step.tolist()
    for position in np.flatnonzero(last >= 0).tolist():
        run, r = runs[position], int(last[position])
        run.through_step = steps[r]
        if rows.present is None:
            run.latest[rows.metrics] = (steps[r], rows.values[r].copy())
    if rows.present is not None:
        for r, k in zip(*np.nonzero(rows.present), strict=True):
            runs[rows.trial[r]].latest[(rows.metrics[k],)] = (steps[r], rows.values[r, k : k + 1].copy())


def later(points: Iterable[Point], last: int) -> list[Point]:
    """The points beyond step `last`, in order; of equal steps the first is kept."""
    first: dict[int, float] = {}
    for step, value in points:
        first.setdefault(int(step), float(value))
    return sorted((step, value) for step, value in first.items() if step > last)


@dataclass(slots=True)
class TrialRows:
    """Trials that begin, end or are relabelled, as rows that are written together."""

    runs: list[Row] = field(default_factory=list)
    """Runs to create."""
    params: list[Row] = field(default_factory=list)
    axes: list[MetricRow] = field(default_factory=list)
    """Values on the axes."""
    tags: list[Row] = field(default_factory=list)
    results: list[tuple[Status | None, str]] = field(default_factory=list)
    """Status (None where it stays) and run id of the trials that have a result."""
    observed: list[MetricRow] = field(default_factory=list)
    latest: list[MetricRow] = field(default_factory=list)
    """One for each run and metric."""

    def add_result(self, result: TrialResult, run: OpenRun, thresholds: str, *, ended: bool) -> None:
        """Add the phase and observations of a trial and, if it has ended, its status.

        Raises:
            UserError: An observation's name breaks MLflow's rule, or the observations are too long for a tag.
        """
        tags = [(key, value, run.run_id) for key, value in layout.result_tags(result, thresholds)]
        observed = run.observed_rows(layout.observed_metrics(result.observations))
        latest = run.latest_rows() if ended else []
        known = {row[0] for row in latest}
        self.results.append((Status(result.status) if ended else None, run.run_id))
        self.tags += tags if ended else [row for row in tags if row[0] not in layout.KEPT_TAGS]
        self.observed += observed
        self.latest += [*latest, *(row for row in observed if row[0] not in known)]

    def take(self, more: TrialRows) -> None:
        """Add the rows of other trials."""
        for column in fields(self):
            getattr(self, column.name).extend(getattr(more, column.name))

    def of(self, runs: Collection[str]) -> TrialRows:
        """The rows of these runs."""
        return TrialRows(
            runs=[row for row in self.runs if row[0] in runs],
            params=[row for row in self.params if row[-1] in runs],
            axes=[row for row in self.axes if row[-1] in runs],
            tags=[row for row in self.tags if row[-1] in runs],
            results=[row for row in self.results if row[-1] in runs],
            observed=[row for row in self.observed if row[-1] in runs],
            latest=[row for row in self.latest if row[-1] in runs],
        )

    def begun(self) -> TrialRows:
        """What begins the trials, without their results."""
        tags = [row for row in self.tags if row[0] not in layout.RESULT_TAGS]
        return TrialRows(runs=self.runs, params=self.params, axes=self.axes, tags=tags)

    @property
    def all_runs(self) -> list[str]:
        """The runs of all rows."""
        return list(dict.fromkeys([*(row[0] for row in self.runs), *(run for _, run in self.results)]))

    @property
    def run_ids(self) -> list[str]:
        """The runs that must exist before `write`."""
        return [run for _, run in self.results]

    def write(self, bulk: Bulk, now: int, late: Sequence[MetricRow] = ()) -> None:
        """Write all but `runs` in the current transaction; `late`: latest metrics of trials that are still running."""
        bulk.new_params(self.params)
        bulk.tags(self.tags)
        bulk.metrics([*self.axes, *self.observed])
        latest = [*self.latest, *late]
        if self.axes:  # one row for each run and metric: that of a job's own metric of the same name is newer
            newer = {(row[0], row[-1]) for row in latest}
            latest += [row for row in self.axes if (row[0], row[-1]) not in newer]
        bulk.latest(latest)
        for status in dict.fromkeys(status for status, _ in self.results if status is not None):
            runs = [run for other, run in self.results if other is status]
            bulk.execute("UPDATE runs SET status = ?, end_time = ? WHERE run_uuid $in", status.value, now, runs)
