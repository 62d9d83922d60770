"""A few settings' mean recorded curve beside the predicted one, and how far they are apart at each step.

Shapes: K steps of a curve. Curves are read one at a time and kept as sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jobs.job import Curves, Prediction
from orchestrator.phases.table import TrialTable
from orchestrator.phases.text import number, plural
from orchestrator.phases.theory.ask import Asked
from orchestrator.phases.theory.deviation import place
from orchestrator.records import Status

Floats = NDArray[np.float64]
ReadCurves = Callable[[Sequence[str]], Iterator[tuple[str, Curves]]]
"""Trial ids -> the recorded curves of those, a bounded number in memory at a time."""

MOST_SHOWN = 4
"""Settings."""
MOST_READ = 100
"""Replicates of each that are read."""
MOST_METRICS = 2


@dataclass(kw_only=True, eq=False)
class _Sums:
    """A running mean and sum of squares at each step, of the values that are finite."""

    step: NDArray[np.int64]
    count: NDArray[np.int64] = field(init=False)
    mean: Floats = field(init=False)
    squares: Floats = field(init=False)

    def __post_init__(self) -> None:
        size = len(self.step)
        self.count, self.mean, self.squares = np.zeros(size, dtype=np.int64), np.zeros(size), np.zeros(size)

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
        total = np.sqrt(self.error**2 + self.value_error**2)
        with np.errstate(divide="ignore", invalid="ignore"):
            off = self.mean - self.value
            found = np.where((total == 0) & (np.abs(off) <= 1e-9 * np.abs(self.value)), 0.0, off / total)
        return np.where(np.isfinite(self.value), found, np.nan)

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


def read_beside(asked: Asked, table: TrialTable, read: ReadCurves, axes: Sequence[str]) -> list[CurveBeside]:
    """Read the curves of a few settings, evenly chosen among those that have both a finished trial and a prediction.

    Args:
        asked: the theory's answers.
        table: all trials.
        read: reads recorded curves.
        axes: names a setting is told by.
    """
    names = asked.curves()[: 2 * MOST_METRICS]
    finished = np.array([status == Status.FINISHED.value for status in table.status], dtype=np.bool_)
    some = np.bincount(asked.setting[finished], minlength=len(asked.params)) > 0
    told = [any(n in said and said[n].step is not None for n in names) for said in asked.said]
    able = np.flatnonzero(some & np.array(told, dtype=np.bool_))
    if not len(able):
        return []
    places = np.unique(np.linspace(0, len(able) - 1, MOST_SHOWN).round().astype(np.int64))
    chosen = [int(s) for s in able[places]]
    rows = {s: np.flatnonzero(finished & (asked.setting == s))[:MOST_READ] for s in chosen}
    owner = {table.trial_id[row]: s for s in chosen for row in rows[s]}
    wanted = {
        (s, name): asked.said[s][name]
        for s in chosen
        for name in names
        if name in asked.said[s] and asked.said[s][name].step is not None
    }
    sums = {key: _Sums(step=np.asarray(predicted.step)) for key, predicted in wanted.items()}
    _add_all(read(list(owner)), owner, sums)
    found = [_beside(name, place(asked, s, axes), sums[s, name], wanted[s, name]) for s, name in wanted]
    return _distinct([one for one in found if len(one.step)])


def _add_all(curves: Iterable[tuple[str, Curves]], owner: dict[str, int], sums: dict[tuple[int, str], _Sums]) -> None:
    for trial_id, curve in curves:
        for (setting, name), kept in sums.items():
            if owner.get(trial_id) == setting and name in curve.values:
                kept.add(curve.step, np.asarray(curve.values[name], dtype=np.float64))


def _beside(name: str, where: str, kept: _Sums, predicted: Prediction) -> CurveBeside:
    # Where some replicates have stopped, those that go on are no fair sample.
    seen = (kept.count > 0) & (kept.count == kept.count.max(initial=0))
    count = kept.count[seen]
    variance = np.where(count > 1, kept.squares[seen] / np.maximum(count - 1, 1), np.nan)
    return CurveBeside(
        metric=name,
        place=where,
        step=kept.step[seen],
        count=count,
        mean=kept.mean[seen],
        error=np.sqrt(variance / count),
        predicted=predicted,
        value=np.asarray(predicted.value)[seen],
        value_error=np.broadcast_to(np.asarray(predicted.standard_error), kept.step.shape)[seen],
    )


def _distinct(found: list[CurveBeside]) -> list[CurveBeside]:
    """At most `MOST_METRICS` metrics, less those that are another one shifted by a constant: they show nothing new."""
    kept: list[str] = []
    for name in dict.fromkeys(one.metric for one in found):
        own = {one.place: one for one in found if one.metric == name}
        if not any(all(_shifted(own[o.place], o) for o in found if o.metric == k and o.place in own) for k in kept):
            kept.append(name)
    return [one for one in found if one.metric in kept[:MOST_METRICS]]


def _shifted(a: CurveBeside, b: CurveBeside) -> bool:
    if not np.array_equal(a.step, b.step):
        return False
    off = a.value - b.value
    rounding = 1e-9 * float(np.nanmax(np.abs(a.value), initial=0.0))
    return bool(np.allclose(off, off[0], rtol=0, atol=rounding, equal_nan=True))
