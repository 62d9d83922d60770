"""The mean recorded curve of a few settings beside the predicted one, and how far they are apart at each step.

Shapes: K steps of a curve. Curves are read one at a time and kept as sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.job import Curves, Prediction
from orchestrator.phases.table import TrialTable
from orchestrator.phases.text import number, plural
from orchestrator.phases.theory.ask import Answers
from orchestrator.phases.theory.deviation import in_standard_errors
from orchestrator.records import Status

Floats = NDArray[np.float64]
ReadCurves = Callable[[Sequence[str]], Iterator[tuple[str, Curves]]]
"""Trial ids -> the recorded curves of those, a bounded number in memory at a time."""

MOST_SHOWN = 4
"""Settings."""
MOST_READ = 100
"""Replicates of each that are read."""
MOST_METRICS = 2


class _Sums:
    """A running mean and sum of squares at each step, of the finite values."""

    def __init__(self, step: NDArray[np.int64]) -> None:
        self.step, self.count = step, np.zeros(len(step), dtype=np.int64)
        self.mean, self.squares = np.zeros(len(step)), np.zeros(len(step))

    def add(self, step: NDArray[np.int64], value: Floats) -> None:
        good = np.isfinite(value)
        _, at, own = np.intersect1d(self.step, step[good], assume_unique=True, return_indices=True)
        new = value[good][own]
        self.count[at] += 1
        off = new - self.mean[at]
        self.mean[at] += off / self.count[at]
        self.squares[at] += off * (new - self.mean[at])


@dataclass(frozen=True, kw_only=True, eq=False)
class CurveBeside:
    """One setting's curve of one metric, measured and predicted, at the (K,) steps that both have."""

    metric: str
    place: str
    """The setting in words."""
    step: NDArray[np.int64]
    count: NDArray[np.int64]
    """(K,) replicates with a finite value."""
    mean: Floats
    error: Floats
    """(K,) the mean's standard error; NaN for fewer than two replicates."""
    predicted: Prediction
    value: Floats
    """(K,) predicted."""
    value_error: Floats

    @property
    def deviation(self) -> Floats:
        """(K,) in standard errors; NaN where there is none."""
        deviation = in_standard_errors(self.mean, self.value, np.sqrt(self.error**2 + self.value_error**2))
        return np.where(np.isfinite(self.value), deviation, np.nan)

    def worst(self) -> int | None:
        """Where it deviates most."""
        size = np.abs(self.deviation)
        return None if np.isnan(size).all() else int(np.nanargmax(size))

    def text(self) -> str:
        """The comparison in words."""
        worst = self.worst()
        if worst is None:
            return f"{plural(int(self.count.max(initial=0)), 'replicate')}: no standard error"
        size = abs(self.deviation[worst])
        return f"deviates by at most {size:.1f} standard errors (step {number(int(self.step[worst]))})"


def read_beside(answers: Answers, table: TrialTable, read: ReadCurves) -> list[CurveBeside]:
    """Read the curves of a few settings, evenly chosen among those that have both a finished trial and a prediction.

    Args:
        answers: of the theory.
        table: all trials.
        read: reads recorded curves.
    """
    names = answers.curves()[: 2 * MOST_METRICS]
    predicted = [
        {n: given[n] for n in names if n in given and given[n].step is not None} for given in answers.predictions
    ]
    finished = np.array([status == Status.FINISHED.value for status in table.status], dtype=np.bool_)
    trained = np.bincount(answers.setting[finished], minlength=len(answers.params)) > 0
    able = np.flatnonzero(trained & np.array([bool(given) for given in predicted], dtype=np.bool_))
    if not len(able):
        return []
    chosen = able[np.unique(np.linspace(0, len(able) - 1, MOST_SHOWN).round().astype(np.int64))].tolist()
    owner = {
        table.trial_id[row]: s for s in chosen for row in np.flatnonzero(finished & (answers.setting == s))[:MOST_READ]
    }
    sums = {s: {name: _Sums(np.asarray(p.step)) for name, p in predicted[s].items()} for s in chosen}
    for trial_id, curves in read(list(owner)):
        for name, kept in sums[owner[trial_id]].items() if trial_id in owner else ():
            if name in curves.values:
                kept.add(curves.step, np.asarray(curves.values[name], dtype=np.float64))
    beside = [
        _beside(name, answers.place(s), kept, predicted[s][name]) for s in chosen for name, kept in sums[s].items()
    ]
    return _distinct([curve for curve in beside if len(curve.step)])


def _beside(name: str, place: str, kept: _Sums, predicted: Prediction) -> CurveBeside:
    # Where some replicates have stopped, the others are no fair sample.
    complete = (kept.count > 0) & (kept.count == kept.count.max(initial=0))
    count = kept.count[complete]
    variance = np.where(count > 1, kept.squares[complete] / np.maximum(count - 1, 1), np.nan)
    return CurveBeside(
        metric=name,
        place=place,
        step=kept.step[complete],
        count=count,
        mean=kept.mean[complete],
        error=np.sqrt(variance / count),
        predicted=predicted,
        value=np.asarray(predicted.value)[complete],
        value_error=np.broadcast_to(np.asarray(predicted.standard_error), kept.step.shape)[complete],
    )


def _distinct(curves: list[CurveBeside]) -> list[CurveBeside]:
    """The curves of at most `MOST_METRICS` metrics, without those that differ from another one by a constant."""
    kept: list[str] = []
    for name in dict.fromkeys(curve.metric for curve in curves):
        own = {curve.place: curve for curve in curves if curve.metric == name}
        if not any(all(_shifted(own[c.place], c) for c in curves if c.metric == k and c.place in own) for k in kept):
            kept.append(name)
    return [curve for curve in curves if curve.metric in kept[:MOST_METRICS]]


def _shifted(a: CurveBeside, b: CurveBeside) -> bool:
    if not np.array_equal(a.step, b.step):
        return False
    off = a.value - b.value
    rounding = 1e-9 * float(np.nanmax(np.abs(a.value), initial=0.0))
    return bool(np.allclose(off, off[0], rtol=0, atol=rounding, equal_nan=True))
