"""The trials that an analysis reads: settings of the other axes, replicates, and curves one setting at a time.

Shapes: R replicates, N values of x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.job import Curves, Job, Params, Scalar
from orchestrator.axes import Axis
from orchestrator.phases.table import TrialTable
from orchestrator.phases.text import number, place_text, words
from orchestrator.records import Status

Floats = NDArray[np.float64]
Setting = Mapping[str, Scalar | None]
ReadCurves = Callable[[Sequence[str], Sequence[str]], Iterator[tuple[str, Curves]]]
"""Trial ids and metrics -> the recorded curves, in the order of the ids, a bounded number in memory at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """The finished trials that share a setting of the axes that an analysis does not use."""

    setting: Setting
    """Axis -> value, of the axes that vary in the sweep; None where an axis does not exist."""
    rows: NDArray[np.int64]
    """Of the table, in its order."""

    @property
    def title(self) -> str:
        """The setting in words."""
        return title_of(self.setting)

    @property
    def called(self) -> str:
        """The title in a figure, with the names of its style."""
        return place_text({name: value for name, value in self.setting.items() if value is not None})


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One quantity of several replicates along x."""

    x: Floats
    """(N,) increasing."""
    values: Floats
    """(R, N) NaN where a replicate has no value."""
    replicates: tuple[int, ...]
    """(R,) numbers."""

    def complete(self) -> Sample:
        """The replicates that have a finite value everywhere, at the places where any replicate has one.

        Without any such place there are none.
        """
        finite = np.isfinite(self.values)
        places = finite.any(0)
        kept = finite[:, places].all(1) & places.any()
        return Sample(
            x=self.x[places],
            values=self.values[np.ix_(kept, places)],
            replicates=tuple(r for r, whole in zip(self.replicates, np.atleast_1d(kept), strict=True) if whole),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A sweep's trials as an analysis reads them."""

    job: Job[Any]
    axes: tuple[Axis, ...]
    table: TrialTable
    params: Sequence[Params]
    """Of each row of the table."""
    read: ReadCurves

    def axis(self, name: str) -> Axis | None:
        """The axis of this name; None for the step."""
        return next((axis for axis in self.axes if axis.name == name), None)

    def groups(self, *used: str) -> list[Group]:
        """The finished trials by their setting of the axes that are not `used`, nor zipped to one that is."""
        zipped = {axis.group for axis in self.axes if axis.name in used and axis.group is not None}
        others = [axis for axis in self.axes if axis.name not in used and axis.group not in zipped]
        columns = {axis.name: self._column(axis) for axis in others}
        varying = [name for name, column in columns.items() if len(set(column)) > 1]
        members: dict[tuple[Scalar | None, ...], list[int]] = {}
        for row, status in enumerate(self.table.status):
            if status == Status.FINISHED.value:
                members.setdefault(tuple(columns[name][row] for name in varying), []).append(row)
        return [
            Group(setting=dict(zip(varying, values, strict=True)), rows=np.array(rows, dtype=np.int64))
            for values, rows in members.items()
        ]

    def _column(self, axis: Axis) -> tuple[Scalar | None, ...]:
        values = self.table.params.get(axis.name, (None,) * len(self.table))
        for name, allowed in axis.when.items():
            values = tuple(v if c in allowed else None for v, c in zip(values, self.table.params[name], strict=True))
        return values

    def amounts(self, group: Group, axis: str) -> Floats:
        """The value of an axis in each trial of a group, as the amount that it stands for (see `Job.amount`)."""
        return np.array([self.job.amount(self.params[row], axis) for row in group.rows], dtype=np.float64)

    def observed(self, group: Group, name: str) -> Floats:
        """An observation of each trial of a group; NaN where it is missing, censored or not finite."""
        column = self.table.observations.get(name)
        if column is None:
            return np.full(len(group.rows), np.nan)
        values = column.value[group.rows]
        return np.where(column.reached[group.rows] & np.isfinite(values), values, np.nan)

    def bounds(self, group: Group, name: str) -> tuple[Floats, Floats]:
        """(above, to]: between what an observation of each trial of a group lies; NaN where it has no finite one.

        As `TrialTable.bounds`: what was not reached has `to` = inf.
        """
        column = self.table.observations.get(name)
        if column is None:
            return np.full(len(group.rows), np.nan), np.full(len(group.rows), np.nan)
        above, to = (bound[group.rows] for bound in self.table.bounds(name))
        known = column.censored[group.rows] | np.isfinite(column.value[group.rows])
        return np.where(known, above, np.nan), np.where(known, to, np.nan)

    def along(self, group: Group, axis: str, values: Floats) -> Sample:
        """A value of each trial of a group, arranged by replicate and by the value of an axis."""
        x, column = np.unique(self.amounts(group, axis), return_inverse=True)
        numbers, row = np.unique(self.table.replicate[group.rows], return_inverse=True)
        array = np.full((len(numbers), len(x)), np.nan)
        array[row.reshape(-1), column.reshape(-1)] = values
        return Sample(x=x, values=array, replicates=tuple(int(n) for n in numbers))

    def curves(self, groups: Sequence[Group], metric: str) -> Iterator[tuple[Group, Sample]]:
        """The curves of one metric, of one group at a time, at the steps that all of its replicates have.

        A replicate with a value that is not finite (it diverged) has NaN throughout.
        """
        owner = {self.table.trial_id[row]: g for g, group in enumerate(groups) for row in group.rows}
        numbers = {self.table.trial_id[row]: int(self.table.replicate[row]) for group in groups for row in group.rows}
        current, kept = 0, list[tuple[int, NDArray[np.int64], Floats]]()
        for trial_id, curves in self.read(list(owner), [metric]):
            while current < owner[trial_id]:
                yield groups[current], _common(kept)
                current, kept = current + 1, []
            if metric in curves.values:
                values = np.asarray(curves.values[metric], dtype=np.float64)
                measured = slice(None) if curves.present is None else curves.present[metric]
                kept.append((numbers[trial_id], curves.step[measured], values[measured]))
        for group in groups[current:]:
            yield group, _common(kept)
            kept = []


def _common(curves: Sequence[tuple[int, NDArray[np.int64], Floats]]) -> Sample:
    finite = [curve for curve in curves if len(curve[2]) and np.isfinite(curve[2]).all()]
    steps: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    if finite:
        steps = reduce(lambda a, b: np.intersect1d(a, b, assume_unique=True), (step for _, step, _ in finite))
    values = np.full((len(curves), len(steps)), np.nan)
    whole = {replicate: (step, value) for replicate, step, value in finite}
    for r, (replicate, _, _) in enumerate(curves):
        if replicate in whole:
            step, value = whole[replicate]
            values[r] = value[np.searchsorted(step, steps)]
    return Sample(x=steps.astype(np.float64), values=values, replicates=tuple(curve[0] for curve in curves))


def title_of(setting: Setting) -> str:
    """A setting in words; "" where no axis varies."""
    texts = []
    for name, value in setting.items():
        if value is None:
            continue
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        texts.append(f"{words(name)} {number(float(value)) if numeric else value}")
    return ", ".join(texts)
