"""Curves and observations as rows of MLflow's `metrics` and `latest_metrics`, built column by column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.records import CurveRows
from orchestrator.tracking.layout import LARGEST, OBSERVED_BEFORE_MS, as_stored
from orchestrator.tracking.metric_block import MetricBlock, MetricRow
from orchestrator.tracking.run_table import OpenRun


def new_rows(rows: CurveRows, runs: Sequence[OpenRun]) -> CurveRows | None:
    """The rows beyond each run's recorded step; None where there are none. `runs` stand for `rows.trial_ids`."""
    through = np.array([run.through_step for run in runs], dtype=np.int64)
    new = rows.step > through[rows.trial]
    if new.all() and len(new):
        return rows
    if not new.any():
        return None
    return CurveRows(
        trial_ids=rows.trial_ids,
        metrics=rows.metrics,
        trial=rows.trial[new],
        step=rows.step[new],
        values=rows.values[new],
        present=rows.present[new] if rows.present is not None else None,
    )


class RowBuffer:
    """Rows on their way to `metrics`, kept as arrays; a large batch costs a database less than small ones."""

    def __init__(self) -> None:
        self._runs: dict[str, int] = {}
        self._metrics: dict[str, int] = {}
        self._parts: list[tuple[NDArray[Any], ...]] = []
        self.rows = 0
        """How many metric rows wait."""

    def add(self, rows: CurveRows, runs: Sequence[OpenRun]) -> None:
        """Take rows in; `runs` stand for `rows.trial_ids`."""
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
        """The runs that the waiting rows belong to."""
        return list(self._runs)

    def block(self) -> MetricBlock:
        """All waiting rows, in the order in which a database writes them fastest."""
        run, metric, timestamp, step, value = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        number, is_nan = stored(value)
        return MetricBlock(
            metrics=tuple(self._metrics),
            runs=tuple(self._runs),
            metric=metric,
            run=run,
            timestamp=timestamp,
            step=step,
            value=number,
            is_nan=is_nan,
        ).ordered()

    def clear(self) -> None:
        """The rows are written."""
        self._runs, self._metrics, self._parts, self.rows = {}, {}, [], 0


def stored(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Values as MLflow's tables hold them: numbers with NaN as 0 and infinities clamped, and which are NaN."""
    is_nan = np.isnan(values)
    return np.clip(np.where(is_nan, 0.0, values), -LARGEST, LARGEST), is_nan


def note(rows: CurveRows, runs: Sequence[OpenRun]) -> None:
    """The rows are written: raise the runs' recorded steps and keep their newest values for `latest_of`."""
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


def latest_of(run: OpenRun) -> list[MetricRow]:
    """The newest row of each metric that has been noted since the last call for this run wrote them."""
    newest: dict[str, tuple[int, float]] = {}
    for metrics, (step, values) in run.latest.items():
        for name, value in zip(metrics, values.tolist(), strict=True):
            if name not in newest or step > newest[name][0]:
                newest[name] = (step, value)
    return [(name, *_split(value, run.start_time + step, step), run.run_id) for name, (step, value) in newest.items()]


def observed_rows(run: OpenRun, observed: Sequence[tuple[str, float]]) -> list[MetricRow]:
    """Observations as rows that lie before the run's start (see `layout`)."""
    before = run.start_time - OBSERVED_BEFORE_MS
    return [(name, *_split(value, before, 0), run.run_id) for name, value in observed]


def _split(value: float, timestamp: int, step: int) -> tuple[float, int, int, bool]:
    number, is_nan = as_stored(value)
    return number, timestamp, step, is_nan
