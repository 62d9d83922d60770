"""The phase diagram of a sweep: its varying axes and, for each setting, what its replicates showed.

Shapes: N trials, A axes, C cells (distinct settings), L labels. Cells are kept sparse, so that a search's scattered
settings cost no more than a grid's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jobs.job import ParamSpec, Scalar, bounded
from orchestrator.axes import Axis
from orchestrator.phases.scale import AxisScale, axis_scale
from orchestrator.phases.table import ObservationColumn, TrialTable
from orchestrator.phases.text import axis_label
from orchestrator.records import Status

Quantile = Callable[[float | NDArray[np.float64]], NDArray[np.float64]]
"""Share of the replicates -> (C,) the quantile of each cell."""
UNLABELLED = "no phase"
"""The label of a finished trial that has no phase."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CellValues:
    """One observation over the cells: the median and range of the replicates, with censoring.

    A censored replicate sorts after every reached one, so the median is a number only where the middle replicate
    (both middle ones, for an even count) was reached.
    """

    median: NDArray[np.float64]
    """(C,) NaN where it was not reached, is not finite, or nothing was observed."""
    low: NDArray[np.float64]
    """(C,) the smallest finite value reached, or NaN."""
    high: NDArray[np.float64]
    """(C,) the largest finite value reached, or NaN."""
    reached: NDArray[np.int64]
    """(C,) replicates with a finite value."""
    not_finite: NDArray[np.int64]
    """(C,) replicates whose value is NaN or infinite."""
    censored: NDArray[np.int64]
    """(C,) replicates that did not reach it."""
    bound: NDArray[np.float64]
    """(C,) the smallest bound up to which a replicate did not reach it, or NaN."""
    above: NDArray[np.float64]
    """(C,) the median is a step in (above, to], as the reports resolve it; NaN where it is known to one step."""
    to: NDArray[np.float64]
    """(C,)"""

    def of(self, cells: NDArray[np.int64]) -> CellValues:
        """The values of some cells."""
        return CellValues(**{key: column[cells] for key, column in vars(self).items()})

    @property
    def not_reached(self) -> NDArray[np.bool_]:
        """(C,) whether replicates were observed and their median is not a number."""
        return np.isnan(self.median) & (self.reached + self.not_finite + self.censored > 0)

    @property
    def least(self) -> NDArray[np.float64]:
        """(C,) the lower end of the replicates' range: one that was not reached lies anywhere above its bound."""
        return np.fmin(self.low, self.bound)

    @property
    def is_open(self) -> NDArray[np.bool_]:
        """(C,) whether the replicates' range has no upper end, as `median` sorts them: `high` is not the largest."""
        return self.not_finite + self.censored > 0


@dataclass(frozen=True, kw_only=True, eq=False)
class PhaseDiagram:
    """Labels over the settings of a sweep."""

    name: str
    axes: tuple[AxisScale, ...]
    """(A,) the axes that vary, in the order of the sweep file; one of each zipped group."""
    partners: Mapping[str, tuple[str, ...]]
    """Axis -> the varying axes zipped to it, which it represents."""
    labels: tuple[str, ...]
    """(L,) the job's phases in order, then any others that were recorded."""
    codes: NDArray[np.int64]
    """(C, A) index of each cell's value on each axis."""
    counts: NDArray[np.int64]
    """(C, L) replicates with each label."""
    failed: NDArray[np.int64]
    """(C,) replicates that failed."""
    missing: NDArray[np.int64]
    """(C,) replicates that are not recorded or not finished."""
    cell: NDArray[np.int64]
    """(N,) the cell of each trial, in the order of the table."""
    observations: Mapping[str, CellValues]
    joined: int = 1
    """The most neighbouring values of an axis that one cell joins (1: every setting is a cell)."""

    @property
    def labelled(self) -> NDArray[np.int64]:
        """(C,) replicates that have a label."""
        return np.asarray(self.counts.sum(axis=1), dtype=np.int64)

    @property
    def used(self) -> list[int]:
        """The labels that occur, by index."""
        return np.flatnonzero(self.counts.sum(axis=0)).tolist()

    @property
    def replicates(self) -> int:
        """The largest number of replicates in a cell."""
        total = self.labelled + self.failed + self.missing
        return int(total.max()) if len(total) else 0

    @property
    def majority(self) -> NDArray[np.int64]:
        """(C,) the most frequent label (the first in a tie); -1 in a hole, a cell without labels."""
        if not self.counts.size:
            return np.full(len(self.counts), -1, dtype=np.int64)
        return np.where(self.labelled > 0, self.counts.argmax(axis=1), -1)

    @property
    def agreement(self) -> NDArray[np.float64]:
        """(C,) the share of labelled replicates with the majority label; NaN in a hole."""
        return self.share.max(axis=1) if self.counts.size else np.full(len(self.counts), np.nan)

    @property
    def share(self) -> NDArray[np.float64]:
        """(C, L) the share of labelled replicates with each label; NaN in a hole."""
        total = self.labelled[:, None]
        return np.where(total > 0, self.counts / np.maximum(total, 1), np.nan)

    @property
    def runner_up(self) -> NDArray[np.int64]:
        """(C,) the second most frequent label; -1 if all replicates agree or there are none."""
        if self.counts.shape[1] < 2:
            return np.full(len(self.counts), -1, dtype=np.int64)
        rest = self.counts.copy()
        rest[np.arange(len(rest)), self.counts.argmax(axis=1)] = 0
        return np.where(rest.max(axis=1) > 0, rest.argmax(axis=1), -1)

    def axis_index(self, name: str) -> int:
        """Position of the axis of this name."""
        return [axis.name for axis in self.axes].index(name)

    def represented(self, name: str) -> int | None:
        """Position of the axis of this name, or of the one that represents it where axes are zipped; None: neither."""
        named = ((axis.name, *self.partners.get(axis.name, ())) for axis in self.axes)
        return next((a for a, names in enumerate(named) if name in names), None)


def phase_diagram(
    name: str,
    axes: Sequence[Axis],
    phases: Sequence[str],
    table: TrialTable,
    specs: Mapping[str, ParamSpec],
    *,
    most_cells: int | None = None,
) -> PhaseDiagram:
    """Reduce a table of trials to a diagram.

    Args:
        name: what the sweep is called.
        axes: the sweep's axes; those with one value are left out.
        phases: the job's labels, in the legend's order.
        table: all trials, including those without a record.
        specs: of the parameters, for their units.
        most_cells: above this many, neighbouring values of the longest numeric axes are joined.
    """
    columns = {axis.name: _coordinate(axis, table) for axis in axes}
    chosen, partners = _independent([axis for axis in axes if len(set(columns[axis.name])) > 1], columns)
    scales = [
        axis_scale(axis.name, axis_label(axis.name, specs), axis.scale, _file_order(axis, columns[axis.name]))
        for axis in chosen
    ]
    codes = np.zeros((len(table), len(scales)), dtype=np.int64)
    for a, scale in enumerate(scales):
        index = {value: i for i, value in enumerate(scale.values)}
        codes[:, a] = [index[value] for value in columns[scale.name]]
    joined = 1
    if most_cells is not None:
        scales, codes, joined = _join(scales, codes, most_cells)
    cells, cell = _distinct(codes, [len(scale.values) for scale in scales])
    recorded = [
        (UNLABELLED if phase is None else phase) if status == Status.FINISHED.value else None
        for phase, status in zip(table.phase, table.status, strict=True)
    ]
    unexpected = sorted({label for label in recorded if label is not None} - set(phases))
    labels = (*phases, *unexpected)
    position = {label: i for i, label in enumerate(labels)}
    label = np.array([-1 if text is None else position[text] for text in recorded], dtype=np.int64)
    counts = np.zeros((len(cells), len(labels)), dtype=np.int64)
    np.add.at(counts, (cell[label >= 0], label[label >= 0]), 1)
    status = np.array(table.status, dtype=object)
    failed = status == Status.FAILED.value
    return PhaseDiagram(
        name=name,
        axes=tuple(scales),
        partners=partners,
        labels=labels,
        codes=cells,
        counts=counts,
        failed=np.bincount(cell[failed], minlength=len(cells)),
        missing=np.bincount(cell[(label < 0) & ~failed], minlength=len(cells)),
        cell=cell,
        joined=joined,
        observations={
            key: cell_values(cell, len(cells), column, bounds=table.bounds(key))
            for key, column in table.observations.items()
            if not bounded(key, table.observations)
        },
    )


def cell_values(
    cell: NDArray[np.int64],
    cells: int,
    column: ObservationColumn,
    quantile: Quantile | None = None,
    *,
    bounds: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> CellValues:
    """Reduce one observation of N trials, each in `cell` (N,), to its `cells` cells.

    Args:
        cell: (N,) the cell of each trial.
        cells: how many there are.
        column: the observation.
        quantile: of the column, if known already.
        bounds: (N,) above and (N,) to, see `TrialTable.bounds`.
    """
    finite = column.reached & np.isfinite(column.value)
    median = (quantile or ranked_quantile(cell, cells, column))(0.5)
    low, high, bound = np.full(cells, np.inf), np.full(cells, -np.inf), np.full(cells, np.inf)
    np.minimum.at(low, cell[finite], column.value[finite])
    np.maximum.at(high, cell[finite], column.value[finite])
    np.minimum.at(bound, cell[column.censored], column.censored_at[column.censored])
    median, low, high, bound = (np.where(np.isfinite(v), v, np.nan) for v in (median, low, high, bound))
    above, to = _median_bounds(cell, cells, column, bounds, median)
    return CellValues(
        median=median,
        low=low,
        high=high,
        reached=np.bincount(cell[finite], minlength=cells),
        not_finite=np.bincount(cell[column.reached & ~finite], minlength=cells),
        censored=np.bincount(cell[column.censored], minlength=cells),
        bound=bound,
        above=above,
        to=to,
    )


def _median_bounds(
    cell: NDArray[np.int64],
    cells: int,
    column: ObservationColumn,
    bounds: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    median: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(C,) each: the medians of the lower bounds and of the upper ones enclose the median of what they bound."""
    none = np.full(cells, np.nan)
    if bounds is None or not (column.reached & (bounds[0] < bounds[1])).any():
        return none, none
    above, to = (ranked_quantile(cell, cells, replace(column, value=values))(0.5) for values in bounds)
    with np.errstate(invalid="ignore"):
        known = np.isfinite(median) & np.isfinite(above) & np.isfinite(to) & (to - above > 1)
    return np.where(known, above, np.nan), np.where(known, to, np.nan)


def ranked_quantile(cell: NDArray[np.int64], cells: int, column: ObservationColumn) -> Quantile:
    """Hazen's quantile of the replicates of each cell, as a function of the share (C,), or one for all cells.

    Values that were not reached or are not finite sort last; a quantile that involves one is infinite. An empty cell
    has NaN.
    """
    observed = column.reached | column.censored
    where = cell[observed]
    ranked = np.where(column.reached & np.isfinite(column.value), column.value, np.inf)[observed]
    ranked = ranked[np.lexsort((ranked, where))]
    count = np.bincount(where, minlength=cells)
    some = np.flatnonzero(count > 0)
    start, last = (np.cumsum(count) - count)[some], count[some] - 1

    def quantile(share: float | NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.full(cells, np.nan)
        place = np.clip(count[some] * np.broadcast_to(share, cells)[some] - 0.5, 0, last)
        below = np.floor(place).astype(np.int64)
        weight = place - below
        low, high = ranked[start + below], ranked[start + np.minimum(below + 1, last)]
        with np.errstate(invalid="ignore"):
            found[some] = np.where(weight > 0, (1 - weight) * low + weight * high, low)
        return found

    return quantile


def _coordinate(axis: Axis, table: TrialTable) -> tuple[Scalar | None, ...]:
    """(N,) the axis's value of each trial; None where its condition does not hold."""
    values = table.params.get(axis.name, (None,) * len(table))
    for name, allowed in axis.when.items():
        values = tuple(v if c in allowed else None for v, c in zip(values, table.params[name], strict=True))
    return values


def _file_order(axis: Axis, column: Sequence[Scalar | None]) -> list[Scalar | None]:
    """The distinct values of a column: those of the sweep file in its order, then any other, sorted."""
    present = set(column)
    known = [v for v in axis.values if v in present]
    return [*known, *sorted(present - set(known), key=lambda v: (v is None, isinstance(v, str), v))]


def _independent(
    axes: Sequence[Axis], columns: Mapping[str, tuple[Scalar | None, ...]]
) -> tuple[list[Axis], dict[str, tuple[str, ...]]]:
    """The axes that are coordinates, and the zipped axes that each of them represents.

    The coordinate of a zipped group is the axis with the most values (numbers before text, then file order); another
    axis of the group is kept only if the coordinates chosen so far do not determine it.
    """
    groups: dict[int, list[Axis]] = {}
    for axis in axes:
        if axis.group is not None:
            groups.setdefault(axis.group, []).append(axis)
    dropped: set[str] = set()
    partners: dict[str, tuple[str, ...]] = {}
    for members in groups.values():
        by_use = sorted(
            members, key=lambda m: (-len(set(columns[m.name])), isinstance(columns[m.name][0], (str, bool)))
        )
        settings = len(set(zip(*(columns[m.name] for m in members), strict=True)))
        kept: list[Axis] = []
        for axis in by_use:
            if kept and len(set(zip(*(columns[m.name] for m in kept), strict=True))) == settings:
                break
            kept.append(axis)
        rest = [m.name for m in members if m not in kept]
        dropped.update(rest)
        if rest:
            partners[kept[0].name] = tuple(rest)
    return [axis for axis in axes if axis.name not in dropped], partners


def _join(
    scales: list[AxisScale], codes: NDArray[np.int64], most_cells: int
) -> tuple[list[AxisScale], NDArray[np.int64], int]:
    """Join neighbouring values of the longest numeric axis repeatedly, until at most `most_cells` cells are left."""
    worst, scales, codes = 1, list(scales), codes.copy()
    factor = [1] * len(scales)
    while len(_distinct(codes, [len(s.values) for s in scales])[0]) > most_cells:
        free = [(len(s.values) - s.special, a) for a, s in enumerate(scales) if s.numeric]
        longest, a = max(free, default=(0, 0))
        if longest < 4:
            break
        scale = scales[a]
        index = np.arange(len(scale.values)) - scale.special
        group = np.where(index < 0, index + scale.special, scale.special + index // 2)
        numbers = scale.values[scale.special :]
        middles = [numbers[min(2 * i + 1, longest - 1)] for i in range((longest + 1) // 2)]
        spacing = "log" if scale.kind == "log" else "linear"
        scales[a] = axis_scale(scale.name, scale.label, spacing, [*scale.values[: scale.special], *middles])
        codes[:, a] = group[codes[:, a]]
        factor[a] *= 2
        worst = max(worst, factor[a])
    return scales, codes, worst


def _distinct(codes: NDArray[np.int64], sizes: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct rows of (N, A) codes in lexicographic order, and which of them each row is."""
    count, width = codes.shape
    if not width:
        return np.zeros((min(count, 1), 0), dtype=np.int64), np.zeros(count, dtype=np.int64)
    cell = np.zeros(count, dtype=np.int64)
    for a, size in enumerate(sizes):
        # Ranks stay below N at every axis, so that the product below cannot overflow.
        _, cell = np.unique(cell * size + codes[:, a], return_inverse=True)
    first = np.full(int(cell.max()) + 1 if count else 0, count, dtype=np.int64)
    np.minimum.at(first, cell, np.arange(count))
    return codes[first], cell
