"""Curves and observations as rows of MLflow's `metrics` and `latest_metrics`, built column by column."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from orchestrator.records import CurveRows
from orchestrator.tracking.bulk_sql import MetricRow
from orchestrator.tracking.layout import LARGEST, OBSERVED_BEFORE_MS, as_stored
from orchestrator.tracking.run_table import OpenRun


def take_new_rows(rows: CurveRows, runs: Sequence[OpenRun]) -> tuple[CurveRows | None, list[MetricRow]]:
    """The rows beyond each run's recorded step (None where there are none), and as MLflow's metric rows.

    `runs` stand for `rows.trial_ids`. The runs are not changed; see `note`.
    """
    through = np.array([run.through_step for run in runs], dtype=np.int64)
    new = rows.step > through[rows.trial]
    if not new.any():
        return None, []
    if not new.all():
        rows = CurveRows(
            trial_ids=rows.trial_ids,
            metrics=rows.metrics,
            trial=rows.trial[new],
            step=rows.step[new],
            values=rows.values[new],
            present=rows.present[new] if rows.present is not None else None,
        )
    start = np.array([run.start_time for run in runs], dtype=np.int64)
    timestamp = start[rows.trial] + rows.step
    # The primary key begins with key and timestamp: rows in that order touch each page of its index once.
    order = np.argsort(timestamp, kind="stable")
    ids = np.array([run.run_id for run in runs], dtype=object)
    columns: list[MetricRow] = []
    for k, name in enumerate(rows.metrics):
        here = order if rows.present is None else order[rows.present[order, k]]
        values, is_nan = stored(rows.values[here, k])
        columns += zip(
            repeat(name),
            values.tolist(),
            timestamp[here].tolist(),
            rows.step[here].tolist(),
            is_nan.tolist(),
            ids[rows.trial[here]].tolist(),
            strict=False,
        )
    return rows, columns


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
