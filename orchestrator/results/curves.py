"""Curves of many trials as one table: a row per trial and step, a column per metric, read in bounded chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jobs.job import Curves, Scalar
from orchestrator.axes import Axis
from orchestrator.errors import UserError, did_you_mean
from orchestrator.results.frames import library
from orchestrator.tracking.base import Tracker
from orchestrator.trial import Trial

KEYS = ("trial_id", "step")
"""The first columns; a metric or an axis of such a name is the column `metric.<name>` or `param.<name>`."""
TRIALS_A_CHUNK = 1_000


def declared_metrics(trials: Sequence[Trial], job: Any) -> tuple[str, ...]:
    """The metrics that the job declares for these trials, in its order; empty where it does not tell."""
    kinds: dict[tuple[Scalar, ...], Any] = {}
    for trial in trials:  # one for each combination of texts and flags, as only options add metrics
        options = tuple(v for v in trial.settings().values() if isinstance(v, (bool, str)))
        kinds.setdefault(options, trial.params)
    return tuple(dict.fromkeys(name for params in kinds.values() for name in job.metrics_of(params)))


def check_metrics(given: Sequence[str], known: Sequence[str], *, place: str = "metrics") -> None:
    """Check names of metrics; `known` is empty where any name may be one.

    Raises:
        UserError: a name is none of them.
    """
    if isinstance(given, str):
        rule, step = "is one text, not a list of metrics", f"{place}=[{given!r}]"
        raise UserError(rule, place=place, value=given, next_step=step)
    for name in given:
        if known and name not in known:
            step = did_you_mean(name, known)
            raise UserError("is no metric of this sweep", place=place, value=name, choices=known, next_step=step)


def recorded_metrics(tracker: Tracker, trials: Sequence[Trial]) -> tuple[str, ...]:
    """The metrics that these trials have reported, by reading all their curves."""
    return tuple(sorted({name for _, curves in tracker.curves([t.id for t in trials]) for name in curves.values}))


SUMMARIES = ("last", "min", "max")
"""What `summaries` gives of each metric."""


def summaries(tracker: Tracker, trial_ids: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """Columns (N,) of trials: `<metric>_last`, `<metric>_min` and `<metric>_max`, each with the step, `..._step`.

    The last value is that of the last step at which the metric was reported, which may be NaN. The smallest and the
    largest are of the finite values, and at the first step that has them. Null where there is none.
    """
    pa = library("pyarrow", what="a table of trials")
    count, row_of = len(trial_ids), {trial_id: row for row, trial_id in enumerate(trial_ids)}
    kept = [(metric, summary) for metric in metrics for summary in SUMMARIES]
    value = {key: np.full(count, np.nan) for key in kept}
    step = {key: np.full(count, -1, dtype=np.int64) for key in kept}
    for trial_id, curves in tracker.curves(trial_ids, list(metrics)) if metrics else ():
        row = row_of[trial_id]
        for metric in metrics:
            for summary, place in _summarised(curves, metric):
                value[metric, summary][row], step[metric, summary][row] = (
                    curves.values[metric][place],
                    curves.step[place],
                )
    columns: dict[str, Any] = {}
    for metric, summary in kept:
        absent = step[metric, summary] < 0
        columns[f"{metric}_{summary}"] = pa.array(value[metric, summary], mask=absent)
        columns[f"{metric}_{summary}_step"] = pa.array(step[metric, summary], mask=absent)
    return columns


def _summarised(curves: Curves, metric: str) -> Iterator[tuple[str, int]]:
    """Summary -> its place in a curve, as far as there is one."""
    if metric not in curves.values:
        return
    values = curves.values[metric]
    there = np.flatnonzero(curves.present[metric]) if curves.present is not None else np.arange(len(values))
    if len(there):
        yield "last", int(there[-1])
    finite = there[np.isfinite(values[there])]
    if len(finite):
        yield "min", int(finite[np.argmin(values[finite])])
        yield "max", int(finite[np.argmax(values[finite])])


def axis_columns(axes: Sequence[Axis], trials: Sequence[Trial], taken: Sequence[str] = ()) -> dict[str, Any]:
    """Column -> `pyarrow.Array` (N,) of each axis, null where it does not exist, and of the replicate."""
    pa = library("pyarrow", what="a table of curves")
    settings = [trial.settings() for trial in trials] if any(axis.when for axis in axes) else []
    columns: dict[str, Any] = {}
    for axis in axes:
        values: list[Scalar | None] = [getattr(trial.params, axis.name, None) for trial in trials]
        if axis.when:
            values = [value if axis.exists(s) else None for value, s in zip(values, settings, strict=True)]
        if len({type(value) for value in values if value is not None}) > 1:
            numbers = not any(isinstance(value, (str, bool)) for value in values)
            values = [None if v is None else float(v) if numbers else str(v) for v in values]
        columns[axis_column(axis.name, taken)] = pa.array(values)
    return columns | {"replicate": pa.array([trial.replicate for trial in trials], pa.int64())}


def axis_column(name: str, taken: Sequence[str] = ()) -> str:
    """The column of an axis among columns of curves; `taken`: names of metrics."""
    return f"param.{name}" if name in (*KEYS, "replicate", *taken) else name


def metric_column(name: str) -> str:
    """The column of a metric among columns of curves."""
    return f"metric.{name}" if name in (*KEYS, "replicate") else name


def curve_tables(
    tracker: Tracker,
    trials: Sequence[Trial],
    metrics: Sequence[str],
    *,
    axes: Sequence[Axis] | None = None,
    trials_a_table: int = TRIALS_A_CHUNK,
) -> Iterator[Any]:
    """Tables of curves, in the order of the trials, all with the same columns: at least one, which may be empty.

    Columns: `trial_id` (dictionary of text), `step` (int64), with `axes` each axis and `replicate` (int64), then each
    metric (double; null where it was not reported at this step, NaN where a NaN was measured). Steps at which none of
    the metrics was reported have no row.

    Args:
        tracker: the record.
        trials: whose curves are read.
        metrics: which metrics.
        axes: columns of each trial to add; None for none.
        trials_a_table: the most trials of a table.
    """
    for start in range(0, max(1, len(trials)), trials_a_table):
        part = trials[start : start + trials_a_table]
        read = dict(tracker.curves([trial.id for trial in part], list(metrics)))
        yield _table([trial for trial in part if trial.id in read], read, metrics, axes)


def _table(
    trials: Sequence[Trial], read: Mapping[str, Curves], metrics: Sequence[str], axes: Sequence[Axis] | None
) -> Any:
    pa = library("pyarrow", what="a table of curves")
    curves = [read[trial.id] for trial in trials]
    lengths = [len(curve.step) for curve in curves]
    row = np.repeat(np.arange(len(trials), dtype=np.int32), lengths)
    arrays: dict[str, Any] = {
        "trial_id": pa.DictionaryArray.from_arrays(pa.array(row), pa.array([t.id for t in trials], pa.string())),
        "step": pa.array(_joined([curve.step for curve in curves], np.int64)),
    }
    if axes is not None:
        taken = [metric_column(name) for name in metrics]
        arrays |= {name: column.take(pa.array(row)) for name, column in axis_columns(axes, trials, taken).items()}
    for name in metrics:
        values = [curve.values.get(name, np.full(len(curve.step), np.nan)) for curve in curves]
        arrays[metric_column(name)] = pa.array(
            _joined(values, np.float64), mask=_joined(_absent(curves, name), np.bool_)
        )
    return pa.table(arrays)


def _absent(curves: Sequence[Curves], name: str) -> list[Any]:
    """Where a metric was not reported, for each curve."""
    return [
        ~curve.present[name]
        if curve.present is not None and name in curve.present
        else np.full(len(curve.step), name not in curve.values)
        for curve in curves
    ]


def _joined(parts: Sequence[Any], kind: Any) -> Any:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=kind)


def joined(tables: Iterator[Any]) -> Any:
    """Tables of curves as one."""
    pa = library("pyarrow", what="a table of curves")
    return pa.concat_tables(list(tables), promote_options="permissive").unify_dictionaries()
