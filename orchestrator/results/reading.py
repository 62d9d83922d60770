"""Where a boundary crosses a line through the map: per seed and over seeds, in axis units.

The line is given by a value of every axis but one. On a grid, the most frequent phases along the line are an order of
phases, and each seed (replicate) is read by itself: the boundary A | B is where the seed leaves A, or what comes before
it, for B, or what comes after it. It is the split that puts the fewest trials on the wrong side, and it lies between
two settings. A seed that goes from A to C directly crosses A | B and B | C at one place. Between two values of a given
axis, the crossings at both are interpolated. Of a search, whose settings are scattered, the fitted boundary and its
bands are read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.job import Scalar
from orchestrator.analysis.estimate import RESAMPLES, SEED, percentile_interval
from orchestrator.analysis.fits import expanded_level
from orchestrator.errors import UserError, did_you_mean
from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.map.surface_map import FittedMap, FittedSlice
from orchestrator.phases.scale import AxisScale
from orchestrator.phases.table import TrialTable
from orchestrator.phases.text import is_number, number
from orchestrator.surface.base import ClassSurface

Floats = NDArray[np.float64]
LEVEL = 0.95
BETWEEN = "between settings"
INTERPOLATED = "interpolated between lines of settings"
OVER_SEEDS = "95% bootstrap over seeds"
GIVEN_BAND = "90% band given these seeds"
SEEDS_BAND = "90% band over seeds"
FITTED = "fitted boundary"
_POINTS = 2001
_SURE = 0.95
COLUMNS = ("boundary", "along", "seed", "value", "low", "high", "interval")
"""Of the table; docs/commands.md explains them."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number: where a boundary crosses the line, with an interval; all in units of the axis `along`.

    -inf and inf: it crosses below or above all settings, or the interval has no end there. NaN: it cannot be told where
    the seed crosses.
    """

    boundary: str
    """The phases below and above it."""
    along: str
    seed: int | None
    """The replicate; None for all of them together."""
    value: float
    low: float
    high: float
    interval: str
    """What low and high are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """A line through the diagram."""

    along: int
    """Index of the axis along which it runs."""
    corners: tuple[tuple[tuple[int, ...], float], ...]
    """The settings of the other axes between which it runs (an index for each; -1 for `along`), and their weights."""


def read(
    diagram: PhaseDiagram,
    table: TrialTable,
    fitted: FittedMap | None,
    at: Mapping[str, Scalar],
    along: str | None = None,
    *,
    scattered: bool = False,
) -> list[Row]:
    """Where the boundaries cross the line.

    Args:
        diagram: of the table, nothing joined.
        table: the trials.
        fitted: the fitted map, which is needed if the settings are scattered.
        at: axis -> value, for every axis but one.
        along: the axis that is left; needed only where several are.
        scattered: whether the settings are those of a search.

    Raises:
        UserError: there is no such line.
    """
    line = _line(diagram, at, along, scattered=scattered)
    if scattered:
        if fitted is None:
            raise UserError("no map is fitted to this search yet", place="read", next_step="phasefront run")
        return _of_surface(diagram, fitted, at, diagram.axes[line.along])
    return _of_grid(diagram, table, line)


def _line(diagram: PhaseDiagram, at: Mapping[str, Scalar], along: str | None, *, scattered: bool) -> Line:
    names = [axis.name for axis in diagram.axes]
    if not names:
        raise UserError("no axis varies, so there is no boundary", place="read", next_step="read a sweep with an axis")
    for name in [*at, *([along] if along is not None else [])]:
        if name not in names:
            place = "--at" if name in at else "--along"
            raise UserError(
                "is no axis that varies", place=place, value=name, choices=names, next_step=did_you_mean(name, names)
            )
    free = [axis for axis in diagram.axes if axis.name not in at]
    numeric = [axis.name for axis in free if axis.numeric]
    if along in at or not numeric:
        rule = "one axis of numbers must be left, along which the boundary is read"
        raise UserError(
            rule, place="--at", value=", ".join(at), next_step=f"leave out --at {along or next(iter(at), '')}"
        )
    wanted = along if along is not None else numeric[0]
    missing = [axis for axis in free if axis.name != wanted]
    if missing:
        step = " ".join(f"--at {axis.name}={axis.text(len(axis.values) // 2)}" for axis in missing)
        rule = (
            f"give a value of every axis but one: {', '.join(axis.name for axis in missing)} {_verb(missing)} missing"
        )
        raise UserError(rule, place="--at", choices=names, next_step=step)
    if wanted not in numeric:
        raise UserError("must be an axis of numbers", place="--along", value=wanted, choices=numeric)
    picked: list[list[tuple[int, float]]] = []
    for axis in diagram.axes:
        picked.append([(-1, 1.0)] if axis.name == wanted else _near(axis, at[axis.name], scattered=scattered))
    corners = tuple(
        (tuple(index for index, _ in corner), math.prod(weight for _, weight in corner))
        for corner in itertools.product(*picked)
    )
    return Line(along=names.index(wanted), corners=corners)


def _verb(axes: Sequence[AxisScale]) -> str:
    return "is" if len(axes) == 1 else "are"


def _near(axis: AxisScale, given: Scalar, *, scattered: bool) -> list[tuple[int, float]]:
    """The values of an axis between which `given` lies, with weights; one value where it is one of them."""
    for index, value in enumerate(axis.values):
        if is_number(value) and is_number(given):
            if math.isclose(value, given, rel_tol=1e-9, abs_tol=1e-12):
                return [(index, 1.0)]
        elif axis.text(index) == (str(given).lower() if isinstance(given, bool) else str(given)):
            return [(index, 1.0)]
    if is_number(given) and not scattered:
        # As settings are printed, with four digits.
        close = [k for k, v in enumerate(axis.values) if is_number(v) and number4(v) == number4(given)]
        if len(close) == 1:
            return [(close[0], 1.0)]
    place = axis.to_position(float(given)) if is_number(given) and axis.numeric else None
    placed = axis.position[axis.special :]
    if place is None or not len(placed) or not placed[0] <= place <= placed[-1]:
        choices = [axis.text(k) for k in range(len(axis.values))]
        rule = f"'{axis.name}' has no such value"
        if axis.numeric:
            numbers = [axis.text(k) for k in range(axis.special, len(axis.values))]
            rule = f"'{axis.name}' runs from {numbers[0]} to {numbers[-1]}"
        step = f"--at {axis.name}={choices[len(choices) // 2]}"
        shown = choices if len(choices) <= 20 else ()
        raise UserError(rule, place="--at", value=given, choices=shown, next_step=step)
    if scattered:
        return [(-1, 1.0)]
    above = int(np.searchsorted(placed, place))
    share = float((place - placed[above - 1]) / (placed[above] - placed[above - 1]))
    return [(axis.special + above - 1, 1 - share), (axis.special + above, share)]


Bracket = tuple[float, float]
"""The positions of two settings between which a boundary crosses a line; infinite where it crosses beyond all."""


def line_at(diagram: PhaseDiagram, at: Mapping[str, Scalar], along: str) -> Line:
    """The line along an axis of a grid at values of all others.

    Raises:
        UserError: there is no such line.
    """
    return _line(diagram, at, along, scattered=False)


class GridLines:
    """The trials of a grid by the line along an axis on which they are, and on it by seed.

    Args:
        diagram: Of the table, nothing joined.
        table: The trials.
        along: Index of the axis.
    """

    def __init__(self, diagram: PhaseDiagram, table: TrialTable, along: int) -> None:
        axis, place = diagram.axes[along], diagram.codes[diagram.cell]
        index = {label: code for code, label in enumerate(diagram.labels)}
        self._labels = diagram.labels
        self._code = np.array([-1 if p is None else index.get(p, -1) for p in table.phase], dtype=np.int64)
        self._u = axis.position[place[:, along]]
        known = np.flatnonzero((self._code >= 0) & (place[:, along] >= axis.special))
        corners = place[known]
        corners[:, along] = -1
        # Sorted by line and seed, the trials of both are neighbours.
        order = np.lexsort((table.replicate[known], *corners.T))
        keys = np.column_stack([corners, table.replicate[known]])[order]
        starts = np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1
        self._rows: dict[tuple[int, ...], dict[int, NDArray[np.int64]]] = {}
        for rows, start in zip(np.split(known[order], starts), (0, *starts.tolist()), strict=True):
            if len(rows):
                *corner, seed = keys[start].tolist()
                self._rows.setdefault(tuple(corner), {})[seed] = rows

    def seeds(self, line: Line) -> list[int]:
        """Those that have trials with a phase on a line."""
        return sorted({seed for corner, _ in line.corners for seed in self._rows.get(corner, {})})

    def brackets(self, line: Line) -> list[tuple[str, dict[int, Bracket]]]:
        """For each boundary along a line, between which settings each seed crosses it."""
        corners = [(self._rows.get(corner, {}), weight) for corner, weight in line.corners]
        seeds = self.seeds(line)
        every = [rows for of_seed, _ in corners for rows in of_seed.values()]
        pooled = np.concatenate([np.zeros(0, dtype=np.int64), *every])
        made: list[tuple[str, dict[int, Bracket]]] = []
        for step in _steps(self._u[pooled], self._code[pooled], len(self._labels)):
            crossed: dict[int, Bracket] = {}
            for seed in seeds:
                parts = [
                    (weight, self._split(of_seed[seed], step) if seed in of_seed else None)
                    for of_seed, weight in corners
                ]
                found = _joined(parts)
                if found is not None:
                    crossed[seed] = found
            made.append((f"{self._labels[step.below]} | {self._labels[step.above]}", crossed))
        return made

    def _split(self, rows: NDArray[np.int64], step: Step) -> Bracket | None:
        """Where some trials make a step, on its part of the axis."""
        u, code = self._u[rows], self._code[rows]
        own = (u >= step.low) & (u <= step.high) & np.isin(code, step.before + step.after)
        return _split(u[own], np.isin(code[own], step.after))


def _of_grid(diagram: PhaseDiagram, table: TrialTable, line: Line) -> list[Row]:
    axis = diagram.axes[line.along]
    rows: list[Row] = []

    def row(name: str, seed: int | None, middle: float, ends: Bracket, interval: str) -> Row:
        value, low, high = (_value(axis, u) for u in (middle, *ends))
        return Row(boundary=name, along=axis.name, seed=seed, value=value, low=low, high=high, interval=interval)

    lines = GridLines(diagram, table, line.along)
    for name, of_seed in lines.brackets(line):
        if of_seed:
            middle, left, right = _over_seeds(np.array(list(of_seed.values()), dtype=np.float64))
            rows.append(row(name, None, middle, (left, right), OVER_SEEDS))
        how = BETWEEN if len(line.corners) == 1 else INTERPOLATED
        for seed in lines.seeds(line):
            ends = of_seed.get(seed, (math.nan, math.nan))
            rows.append(row(name, seed, (ends[0] + ends[1]) / 2, ends, how))
    return rows


def _value(axis: AxisScale, u: float) -> float:
    """A position as a value of the axis, exactly one of its values if it is one; infinite ends stay so."""
    near = np.flatnonzero(np.abs(axis.position - u) < 1e-9)
    value = axis.values[int(near[0])] if len(near) else None
    if is_number(value):
        return float(value)
    return u if not math.isfinite(u) else float(axis.to_value(np.array([u]))[0])


class Step(NamedTuple):
    """A change of the most frequent label along a line."""

    below: int
    above: int
    """The two labels."""
    low: float
    high: float
    """The part of the line on which a seed may make it."""
    before: tuple[int, ...]
    after: tuple[int, ...]
    """The labels that a seed has before and after it."""


def _steps(u: Floats, code: NDArray[np.int64], labels: int) -> list[Step]:
    """The changes of the most frequent label along u.

    Where two labels change into each other once, a seed may do so anywhere, and it may skip labels: all that come
    earlier on the line are before the change, all that come later are after it. Otherwise only both runs count.
    """
    if not len(u):
        return []
    places, member = np.unique(np.round(u, 12), return_inverse=True)
    counts = np.zeros((len(places), labels), dtype=np.int64)
    np.add.at(counts, (member.reshape(-1), code), 1)
    runs: list[list[int]] = []  # label, first, last
    for k, label in enumerate(counts.argmax(axis=1).tolist()):
        if runs and runs[-1][0] == label:
            runs[-1][2] = k
        else:
            runs.append([label, k, k])
    pairs = [frozenset((a[0], b[0])) for a, b in itertools.pairwise(runs)]
    order, steps = [run[0] for run in runs], list[Step]()
    for k, (a, b) in enumerate(itertools.pairwise(runs), start=1):
        below, above = a[0], b[0]
        if pairs.count(pairs[k - 1]) == 1:
            earlier, later = set(order[:k]), set(order[k:])
            before, after = earlier - later | {below}, later - earlier | {above}
            steps.append(Step(below, above, -math.inf, math.inf, tuple(sorted(before)), tuple(sorted(after))))
        else:
            low, high = float(places[a[1]]) - 1e-9, float(places[b[2]]) + 1e-9
            steps.append(Step(below, above, low, high, (below,), (above,)))
    return steps


def _split(u: Floats, above: NDArray[np.bool_]) -> Bracket | None:
    """The settings between which the fewest trials are on the wrong side; an infinite end where all are on one side.

    Of several equally good splits, from the first to the last. None where that is everywhere, as without trials.
    """
    places, member = np.unique(u, return_inverse=True)
    ones = np.bincount(member.reshape(-1), above, minlength=len(places))
    zeros = np.bincount(member.reshape(-1), ~above, minlength=len(places))
    wrong = np.concatenate([[0.0], np.cumsum(ones)]) + np.concatenate([np.cumsum(zeros[::-1])[::-1], [0.0]])
    best = np.flatnonzero(wrong == wrong.min())
    if best[0] == 0 and best[-1] == len(places):
        return None
    ends = np.concatenate([[-math.inf], places, [math.inf]])
    return float(ends[best[0]]), float(ends[best[-1] + 1])


def _joined(parts: Sequence[tuple[float, Bracket | None]]) -> Bracket | None:
    """The weighted mean of brackets; None where one is missing."""
    found = [(weight, bracket) for weight, bracket in parts if bracket is not None]
    if len(found) < len(parts):
        return None
    low, high = (sum(weight * bracket[end] for weight, bracket in found) for end in (0, 1))
    return (low, high) if not (math.isnan(low) or math.isnan(high)) else None


def _over_seeds(ends: Floats) -> tuple[float, float, float]:
    """Mean position over seeds (n, 2) and its bootstrap interval; the median where a seed does not cross.

    A position lies anywhere between its two settings: each resample takes the same random share of every distance, so
    that the interval is not narrower than the grid.
    """
    middle = ends.mean(axis=1)
    crossed = bool(np.isfinite(ends).all())
    value = float(middle.mean()) if crossed else float(_median(middle))
    if len(ends) < 2:
        return value, -math.inf, math.inf
    random = np.random.default_rng(SEED)
    share = random.random((RESAMPLES, 1))
    chosen = ends[random.integers(len(ends), size=(RESAMPLES, len(ends)))]
    placed = (1 - share) * chosen[..., 0] + share * chosen[..., 1]
    resampled = placed.mean(axis=1) if crossed else _median(placed)
    # Of two seeds, the expanded level is nearly 1: all that the seeds allow.
    level = min(expanded_level(LEVEL, len(ends), len(ends), 1), 1 - 1e-9)
    low, high = percentile_interval(resampled, level)
    return value, low, high


def _median(values: Floats) -> Floats:
    """The middle value along the last axis, the lower of two middle ones: they may be infinite."""
    ordered: Floats = np.sort(values, axis=-1)[..., (values.shape[-1] - 1) // 2]
    return ordered


def _of_surface(diagram: PhaseDiagram, fitted: FittedMap, at: Mapping[str, Scalar], axis: AxisScale) -> list[Row]:
    """The fitted boundary along the line, with its two bands."""
    part = _slice_at(diagram, fitted, at)
    names = [box.name for box in part.slice.axes]
    if not isinstance(part.surface, ClassSurface) or axis.name not in names:
        rule = "has no boundary between phases along this axis"
        step = "a ridge is read from boundary.parquet" if axis.name in names else f"read along {' or '.join(names)}"
        raise UserError(rule, place="--along", value=axis.name, next_step=step)
    unit = np.linspace(0, 1, _POINTS)
    points = np.empty((_POINTS, len(names)))
    for k, box in enumerate(part.slice.axes):
        points[:, k] = unit if box.name == axis.name else float(box.unit(np.array(float(at[box.name]))))
    along = part.slice.axes[names.index(axis.name)]
    belief = part.surface.belief(points)
    bands = [(GIVEN_BAND, part.surface.belief(points))]
    if part.bands is not None:
        bands = [(GIVEN_BAND, part.bands.given_seeds.belief(points))]
        if part.bands.over_seeds is not None:
            bands.append((SEEDS_BAND, part.bands.over_seeds.belief(points)))
    leading = belief.argmax(axis=1)
    rows = []
    for k in np.flatnonzero(leading[1:] != leading[:-1]).tolist():
        name = f"{fitted.labels[leading[k]]} | {fitted.labels[leading[k + 1]]}"
        value = float(along.value(np.array((unit[k] + unit[k + 1]) / 2)))
        for kind, own in bands:
            low, high = _band(own, k)
            ends = [float(along.value(np.array(unit[e]))) if e is not None else None for e in (low, high)]
            rows.append(
                Row(
                    boundary=name,
                    along=axis.name,
                    seed=None,
                    value=value,
                    low=-math.inf if ends[0] is None else ends[0],
                    high=math.inf if ends[1] is None else ends[1],
                    interval=kind,
                )
            )
    return rows


def _band(belief: Floats, near: int) -> tuple[int | None, int | None]:
    """The ends of the stretch without a class of 95% belief around a point of the line; None: it has no end there."""
    sure = belief.max(axis=1) >= _SURE
    below = np.flatnonzero(sure[: near + 1])
    above = np.flatnonzero(sure[near + 1 :])
    return (int(below[-1]) if len(below) else None), (int(above[0]) + near + 1 if len(above) else None)


def _slice_at(diagram: PhaseDiagram, fitted: FittedMap, at: Mapping[str, Scalar]) -> FittedSlice:
    scales = {axis.name: axis for axis in diagram.axes}

    def holds(name: str, value: Scalar | None) -> bool:
        given = at.get(name)
        if is_number(given) and is_number(value):
            return math.isclose(given, value, rel_tol=1e-9)
        return name not in at or value == given or scales[name].text(scales[name].values.index(value)) == str(given)

    for part in fitted.fitted:
        if all(holds(name, value) for name, value in part.slice.fixed.items()):
            return part
    titles = [part.slice.title for part in fitted.fitted]
    raise UserError("no map is fitted there", place="--at", choices=titles, next_step="choose one of these slices")


def lines_of(rows: Sequence[Row]) -> list[str]:
    """The rows as text, a block for each boundary."""
    lines: list[str] = []
    for (boundary, along), group in itertools.groupby(rows, key=lambda row: (row.boundary, row.along)):
        own = list(group)
        crossed = [row for row in own if row.seed is not None and not math.isnan(row.value)]
        below, _, above = boundary.partition(" | ")
        lines.append(f"{boundary}: from '{below}' to '{above}' as {along} rises")
        for row in own:
            if row.interval == OVER_SEEDS:
                lines.append(f"  {_over_seeds_text(row, crossed)}")
            elif row.seed is None:
                lines.append(f"  {FITTED}: {number4(row.value)}  {_extent(row)}")
            elif math.isnan(row.value):
                lines.append(f"  seed {row.seed:<4} no crossing can be told")
            else:
                lines.append(f"  seed {row.seed:<4} {_bound(row)}{_between(row)}{_skipping(row, rows)}")
    return lines


def number4(value: float) -> str:
    """A value with four digits."""
    return number(float(f"{value:.4g}"))


def _over_seeds_text(row: Row, seeds: Sequence[Row]) -> str:
    if len(seeds) < 2:
        return f"seed: {_bound(seeds[0])}  one seed has no interval"
    crossed = all(math.isfinite(each.value) for each in seeds)
    what = f"{'mean' if crossed else 'median'} over {len(seeds)} seeds"
    if math.isfinite(row.value):
        return f"{what}: {number4(row.value)}  {_extent(row)}"
    # All that is known of an infinite median is the bound that half of the seeds have.
    low, high = (float(_median(np.array([getattr(each, end) for each in seeds]))) for end in ("low", "high"))
    extent = "too few seeds cross for an interval" if row.low == row.high else _extent(row)
    return f"{what}: {_bound(replace(row, low=low, high=high))}  {extent}"


def _extent(row: Row) -> str:
    low = number4(row.low) if math.isfinite(row.low) else "no lower end"
    high = number4(row.high) if math.isfinite(row.high) else "no upper end"
    return f"[{low}, {high}], {row.interval}"


def _bound(row: Row) -> str:
    if math.isfinite(row.value):
        return number4(row.value)
    return f"below {number4(row.high)}" if row.value < 0 else f"above {number4(row.low)}"


def _between(row: Row) -> str:
    between = row.interval == BETWEEN
    if not math.isfinite(row.value):
        return ", not crossed on the grid" if between else ", interpolated: not crossed on every neighbouring line"
    return f", between {number4(row.low)} and {number4(row.high)}" + ("" if between else ", interpolated")


def _skipping(row: Row, rows: Sequence[Row]) -> str:
    """That a seed has nothing between two phases: it crosses several boundaries at one place."""
    at = [each for each in rows if each.seed == row.seed and (each.low, each.high) == (row.low, row.high)]
    if len(at) < 2 or not math.isfinite(row.value):
        return ""
    return f", directly from '{at[0].boundary.partition(' | ')[0]}' to '{at[-1].boundary.partition(' | ')[2]}'"
