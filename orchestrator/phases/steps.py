"""Recorded metrics over an axis and the step (Nakkiran et al. 2019, arXiv 1912.02292, figure 2), from stored curves.

Curves are read one at a time and reduced at once to the steps of a grid: what is kept grows with the cells of the
figure, not with the trials. Peaks along the axis (model-wise) need the replicates apart, so they are looked for at so
many of the steps that `MOST_KEPT` numbers suffice; the last step is always one of them.

Shapes: C cells, S steps of the grid, X values of the axis, K steps at which a peak along the axis is looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.job import Curves
from orchestrator.analysis.estimate import LEVEL
from orchestrator.analysis.means import Means, RunningMeans, at_steps, grid_of_steps
from orchestrator.analysis.peaks import PeakSearch, find_peak
from orchestrator.analysis.smoothing import WINDOW
from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.layout import Panel, cut, quantity
from orchestrator.phases.scale import AxisScale, axis_scale
from orchestrator.phases.table import TrialTable
from orchestrator.records import Status

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
ReadCurves = Callable[[Sequence[str]], Iterator[tuple[str, Curves]]]
"""Trial ids -> the recorded curves of those, in this order, a bounded number in memory at a time."""

MOST_CELLS = 8_192
"""Settings in a step map; neighbouring ones are joined beyond that."""
MOST_STEPS = 128
MOST_TESTED = 500
"""Curves in which a peak along the steps is looked for, and as many along the axis."""
MOST_KEPT = 4_000_000
"""Numbers of single replicates that are kept for the peaks along the axis."""
_MOST_ROWS = 256
"""Replicates of a setting whose curves are kept for the peak along the steps."""
_PROBED = 24


@dataclass(frozen=True, kw_only=True, eq=False)
class StepSlice:
    """The cells that share a value on every axis but that of the map."""

    panel: Panel
    cell: Integers
    """(X,) the cell at each value of the axis; -1 where there is none."""
    along_steps: Mapping[int, PeakSearch]
    """Index of a value of the axis -> the search for a peak of the mean curve along the steps (epoch-wise)."""
    along_axis: Mapping[int, PeakSearch]
    """Index of a step -> the search for a peak of the mean along the axis (model-wise)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MetricMap:
    """One metric at every cell and step."""

    metric: str
    mean: Floats
    """(C, S) over replicates; NaN where no replicate has a finite value."""
    low: Floats
    """(C, S) of the mean's interval; -inf for one replicate."""
    high: Floats
    count: Integers
    """(C, S) replicates with a finite value."""
    slices: tuple[StepSlice, ...]

    @property
    def partial(self) -> int:
        """Cells and steps at which some replicates of the cell have no finite value, but others have."""
        return int(((self.count > 0) & (self.count < self.count.max(axis=1, initial=0, keepdims=True))).sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class StepMap:
    """Metrics of a sweep over one of its axes and the step."""

    diagram: PhaseDiagram
    x: int
    """Index of the axis."""
    steps: Integers
    """(S,)"""
    maps: tuple[MetricMap, ...]
    trials: int
    """Trials whose curves were read."""
    beyond: int
    """Trials whose curves go on after the last step of the grid."""

    @property
    def axis(self) -> AxisScale:
        """The axis beside the step."""
        return self.diagram.axes[self.x]

    @property
    def step_axis(self) -> AxisScale:
        """The steps as an axis."""
        return axis_scale("step", "step", "log", self.steps.tolist())


class NoSuchMetric(LookupError):
    """No curve has this metric; `choices` are those that curves have."""

    def __init__(self, metric: str, choices: Sequence[str]) -> None:
        super().__init__(metric)
        self.metric, self.choices = metric, tuple(choices)


def error_of(metric: str, values: Floats) -> Floats:
    """The values in which a peak is looked for: of an accuracy, 1 minus it."""
    return 1 - values if quantity(metric) == "accuracy" else values


def read_step_map(
    diagram: PhaseDiagram,
    table: TrialTable,
    metrics: Collection[str],
    read: ReadCurves,
    *,
    x: int,
    level: float = LEVEL,
) -> StepMap:
    """Read the curves of all finished trials, and reduce them to means and peaks.

    Args:
        diagram: of the table; its cells are those of the map.
        table: all trials.
        metrics: names of recorded metrics.
        read: reads recorded curves.
        x: index of the axis beside the step.
        level: of the intervals.

    Raises:
        NoSuchMetric: a metric is in no curve.
    """
    finished = np.array([status == Status.FINISHED.value for status in table.status], dtype=np.bool_)
    order = np.flatnonzero(finished)
    order = order[np.argsort(diagram.cell[order], kind="stable")]
    probed = [curves for _, curves in read([table.trial_id[row] for row in _probe(diagram, order)])]
    known = sorted({name for curves in probed for name in curves.values})
    for metric in metrics:
        if metric not in known:
            raise NoSuchMetric(metric, known)
    grid = grid_of_steps(np.concatenate([curves.step for curves in probed]), most=MOST_STEPS)
    panels = cut(diagram, [a for a in range(len(diagram.axes)) if a != x])
    reducers = [_Reducer(metric, diagram, table, grid, panels, x, len(metrics), level) for metric in metrics]
    row_of = {table.trial_id[row]: int(row) for row in order}
    trials = beyond = 0
    for trial_id, curves in read([table.trial_id[row] for row in order]):
        trials += 1
        beyond += int(len(curves.step) and curves.step[-1] > grid[-1])
        for reducer in reducers:
            reducer.add(row_of[trial_id], curves)
    return StepMap(
        diagram=diagram,
        x=x,
        steps=grid,
        maps=tuple(reducer.result() for reducer in reducers),
        trials=trials,
        beyond=beyond,
    )


def _probe(diagram: PhaseDiagram, order: Integers) -> list[int]:
    """Trials whose steps stand for those of all: at both ends of every axis, and evenly between."""
    if not len(order):
        return []
    codes = diagram.codes[diagram.cell[order]]
    ends = [int(find(codes[:, a])) for a in range(codes.shape[1]) for find in (np.argmin, np.argmax)]
    even = np.linspace(0, len(order) - 1, _PROBED).round().astype(int).tolist()
    return sorted({int(order[place]) for place in (*ends, *even)})


class _Reducer:
    """Reduces the curves of one metric, given cell by cell."""

    def __init__(
        self,
        metric: str,
        diagram: PhaseDiagram,
        table: TrialTable,
        grid: Integers,
        panels: Sequence[Panel],
        x: int,
        metrics: int,
        level: float,
    ) -> None:
        self._level = level
        self._metric, self._diagram, self._grid, self._x = metric, diagram, grid, x
        self._panels, self._replicate = panels, table.replicate
        cells, steps, axis = len(diagram.codes), len(grid), diagram.axes[x]
        self._mean, self._low, self._high = (np.full((cells, steps), np.nan) for _ in range(3))
        self._count = np.zeros((cells, steps), dtype=np.int64)
        self._cell, self._sums, self._rows = -1, RunningMeans(steps), list[Floats]()
        # A cell that joins settings has several trials of one replicate number: those are no replicates.
        self._tests = diagram.joined == 1
        self._epoch_wise: dict[int, PeakSearch] = {}
        wide = axis.numeric and len(axis.values) - axis.special >= 3
        most = min(MOST_KEPT // max(len(table) * metrics, 1), MOST_TESTED // max(len(panels), 1), steps)
        self._at = np.unique(np.linspace(steps - 1, 0, max(most, 1)).round().astype(np.int64))
        if not self._tests or not wide:
            self._at = self._at[:0]
        self._kept = np.full((len(table), len(self._at)), np.nan)

    def add(self, row: int, curves: Curves) -> None:
        """Add the curves of the trial in this row of the table."""
        if self._metric not in curves.values:
            return
        step, value = curves.step, np.asarray(curves.values[self._metric], dtype=np.float64)
        if curves.present is not None:
            there = curves.present[self._metric]
            step, value = step[there], value[there]
        cell = int(self._diagram.cell[row])
        if cell != self._cell:
            self._close()
            self._cell = cell
        values = at_steps(step, value, self._grid)
        self._sums.add(values)
        self._kept[row] = values[self._at]
        if self._tests and len(self._epoch_wise) < MOST_TESTED and len(self._rows) < _MOST_ROWS:
            self._rows.append(values)

    def _close(self) -> None:
        """The current cell is complete."""
        if self._cell < 0:
            return
        means: Means = self._sums.means(level=self._level)
        for kept, new in zip(
            (self._mean, self._low, self._high, self._count),
            (means.mean, means.low, means.high, means.count),
            strict=True,
        ):
            kept[self._cell] = new
        if self._rows:
            search = search_rows(self._grid, error_of(self._metric, np.array(self._rows)), level=self._level)
            if search is not None:
                self._epoch_wise[self._cell] = search
        self._sums, self._rows = RunningMeans(len(self._grid)), []

    def result(self) -> MetricMap:
        """The map, after the last curve."""
        self._close()
        self._cell = -1
        return MetricMap(
            metric=self._metric,
            mean=self._mean,
            low=self._low,
            high=self._high,
            count=self._count,
            slices=tuple(self._slice(panel) for panel in self._panels),
        )

    def _slice(self, panel: Panel) -> StepSlice:
        axis, codes = self._diagram.axes[self._x], self._diagram.codes[:, self._x]
        cell = np.full(len(axis.values), -1, dtype=np.int64)
        cell[codes[panel.cells]] = panel.cells
        along_steps = {x: self._epoch_wise[c] for x, c in enumerate(cell.tolist()) if c in self._epoch_wise}
        rows = np.flatnonzero(np.isin(self._diagram.cell, panel.cells) & (codes[self._diagram.cell] >= axis.special))
        along_axis: dict[int, PeakSearch] = {}
        if len(self._at) and len(rows):
            numbers, replicate = np.unique(self._replicate[rows], return_inverse=True)
            values = np.full((len(numbers), len(axis.values), len(self._at)), np.nan)
            values[replicate, codes[self._diagram.cell[rows]]] = self._kept[rows]
            place = np.array(axis.values[axis.special :], dtype=np.float64)
            for k, step in enumerate(self._at.tolist()):
                of_step = error_of(self._metric, values[:, axis.special :, k])
                search = search_rows(place, of_step, window=1.0, level=self._level)
                if search is not None:
                    along_axis[step] = search
        return StepSlice(panel=panel, cell=cell, along_steps=along_steps, along_axis=along_axis)


def search_rows(
    x: NDArray[np.int64] | Floats, values: Floats, *, window: float = WINDOW, level: float = LEVEL
) -> PeakSearch | None:
    """The peak of the mean of (R, N) curves, as far as they are complete; None if it cannot be tested.

    Places without any finite value are left out, then replicates that are not finite at all others.
    """
    finite = np.isfinite(values)
    places = finite.any(axis=0)
    rows = finite[:, places].all(axis=1)
    if rows.sum() < 2 or places.sum() < 3 or (window > 1 and x[places][0] < 0):
        return None
    return find_peak(x[places], values[np.ix_(rows, places)], window=window, level=level)
