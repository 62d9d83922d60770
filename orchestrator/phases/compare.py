"""Two phase maps over the same axes, fitted by the same classifier, and where they differ."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.job import Scalar
from orchestrator.phases.diagram import PhaseDiagram, phase_diagram
from orchestrator.phases.map.box import BoxAxis
from orchestrator.phases.map.classify import classify
from orchestrator.phases.map.raster import in_chunks
from orchestrator.phases.map.surface_map import FittedMap, FittedSlice
from orchestrator.phases.table import TableNote, TrialTable
from orchestrator.phases.text import is_number, plural
from orchestrator.surface.base import ClassSurface, Points, Surrogate, lattice
from orchestrator.target import PhaseTarget

PROBES = 2**16
"""Positions at which the two maps are compared."""


class NotComparable(ValueError):
    """Two sweeps without a common plane; the text says why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """One of the two maps."""

    note: TableNote
    """Its sweep."""
    table: TrialTable
    diagram: PhaseDiagram
    map: FittedMap
    stale: int = 0
    """Trials whose labels are of other thresholds than the note's."""

    @property
    def name(self) -> str:
        """Of its sweep."""
        return self.note.name

    @property
    def counted(self) -> tuple[int, int]:
        """(trials with a result, their settings) of the slices that have a map."""
        rows = np.concatenate([np.zeros(0, dtype=np.int64), *(part.rows for part in self.map.fitted)])
        return len(rows), len(np.unique(self.diagram.cell[rows]))

    @property
    def left_out(self) -> tuple[str, ...]:
        """The slices that have no map: which, how many of its trials have a result, and why."""
        return tuple(
            f"{part.slice.title or 'all of it'} ({plural(len(part.evidence), 'trial')} with a result), "
            + ("where fewer than two numeric axes vary" if len(part.slice.axes) < 2 else "where no map can be fitted")
            for part in self.map.slices
            if part.surface is None
        )

    @property
    def is_grid(self) -> bool:
        """Whether its settings are every combination of its axes' values, three or more along each."""
        sizes = [len(axis.values) for axis in self.diagram.axes]
        return min(sizes, default=0) >= 3 and len(self.diagram.codes) == int(np.prod(sizes))


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A slice that both sides have, and the box that both cover."""

    title: str
    first: FittedSlice
    second: FittedSlice
    axes: tuple[BoxAxis, ...]
    """(d,) from the larger of the two low ends to the smaller of the high ones."""
    codes: tuple[NDArray[np.int64], NDArray[np.int64]]
    """Class of either side -> index among `Comparison.labels`."""

    def shares(self) -> tuple[float, float, float, float]:
        """The shares of the box in which the classes differ, and do outside both bands, and that lie in either band."""
        at = lattice(PROBES, len(self.axes))
        bands = [self.in_band(which, at) for which in (0, 1)]
        differ = self.label(0, at) != self.label(1, at)
        share, sure, *unsure = (float(mask.mean()) for mask in (differ, differ & ~bands[0] & ~bands[1], *bands))
        return share, sure, unsure[0], unsure[1]

    def side(self, which: int) -> FittedSlice:
        """The slice of side 0 or 1."""
        return (self.first, self.second)[which]

    def surface(self, which: int) -> ClassSurface:
        """The classifier of side 0 or 1."""
        surface = self.side(which).surface
        assert isinstance(surface, ClassSurface)
        return surface

    def label(self, which: int, x: Points) -> NDArray[np.int64]:
        """(q,) the class of side 0 or 1, among the common labels, at positions in the common box."""
        leading = in_chunks(self.surface(which).belief, self.own(which, x)).argmax(axis=1)
        return np.asarray(self.codes[which][leading], dtype=np.int64)

    def in_band(self, which: int, x: Points) -> NDArray[np.bool_]:
        """(q,) whether the positions are in the 90% band of side 0 or 1."""
        return in_chunks(self.surface(which).in_band, self.own(which, x))

    def own(self, which: int, x: Points) -> Points:
        """Positions in the common box as positions in the box of side 0 or 1."""
        return _moved(x, self.axes, self.side(which).slice.axes)

    def common(self, which: int, x: Points) -> Points:
        """Positions in the box of side 0 or 1 as positions in the common box."""
        return _moved(x, self.side(which).slice.axes, self.axes)


def _moved(x: Points, of: Sequence[BoxAxis], to: Sequence[BoxAxis]) -> Points:
    """Positions in the box of some axes as positions in another box, which has the same axes in any order."""
    index = {axis.name: k for k, axis in enumerate(of)}
    return np.column_stack([axis.unit(of[k].value(x[:, k])) for axis in to for k in [index[axis.name]]])


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What two maps have in common, and what not."""

    first: Side
    second: Side
    labels: tuple[str, ...]
    pairs: tuple[Pair, ...]
    area: float
    """The share of the common area in which the two classes differ."""
    sure_area: float
    """The share in which they differ outside both bands (at least 95% belief on either side)."""
    unsure: tuple[float, float]
    """The share that lies in the band of either side."""
    by_slice: tuple[tuple[float, float], ...]
    """`area` and `sure_area` of each pair."""
    cells: tuple[tuple[int, float, float] | None, tuple[int, float, float] | None]
    """Of either side that is a grid: its settings in the common box, and the shares of them at which most replicates
    show another class than the other side's map, and than its own map."""
    unmatched: tuple[str, ...]
    """Slices that only one of them has."""
    differences: tuple[str, ...]
    """What else differs between the two sweeps, besides where their trials lie, in a line each."""


def side(note: TableNote, table: TrialTable, *, surrogate: Surrogate[Any] | None = None, stale: int = 0) -> Side:
    """Fit the classifier to a table of trials.

    Args:
        note: about its sweep.
        table: the trials.
        surrogate: fitted in place of the usual classifier.
        stale: trials whose labels are of other thresholds than the note's.
    """
    diagram = phase_diagram(note.name, note.axes, note.phases, table, {})
    fitted = classify(PhaseTarget(), diagram, table, note.axes, (), surrogate, listed=note.search)
    return Side(note=note, table=table, diagram=diagram, map=fitted, stale=stale)


def compare(first: Side, second: Side) -> Comparison:
    """Compare two maps.

    Raises:
        NotComparable: they have no slice with the same two or more numeric axes, or their ranges do not overlap.
    """
    labels = tuple(dict.fromkeys([*first.map.labels, *second.map.labels]))
    codes = [np.array([labels.index(label) for label in of.map.labels], dtype=np.int64) for of in (first, second)]
    others = {_key(part): part for part in second.map.fitted}
    pairs, alone = [], []
    for part in first.map.fitted:
        other = others.pop(_key(part), None)
        if other is None:
            alone.append(f"{first.name}: {_called(part)}")
            continue
        axes = _common(part, other)
        pairs.append(Pair(title=part.slice.title, first=part, second=other, axes=axes, codes=(codes[0], codes[1])))
    alone += [f"{second.name}: {_called(other)}" for other in others.values()]
    if not pairs:
        raise NotComparable(f"no slice has the same axes in both: {'; '.join(alone) or 'neither has a map'}")
    shares = [pair.shares() for pair in pairs]
    area, sure_area, *unsure = np.mean(shares, axis=0).tolist()
    return Comparison(
        first=first,
        second=second,
        labels=labels,
        pairs=tuple(pairs),
        area=area,
        sure_area=sure_area,
        unsure=(unsure[0], unsure[1]),
        by_slice=tuple((share, sure) for share, sure, *_ in shares),
        cells=(_cells(first, pairs, 0), _cells(second, pairs, 1)),
        unmatched=tuple(alone),
        differences=_differences(first, second, pairs),
    )


def _differences(first: Side, second: Side, pairs: Sequence[Pair]) -> tuple[str, ...]:
    """What the compared trials differ in: the name, the value in A, the value in B.

    A parameter that varies in both is an axis, and no difference. Of two jobs only what both have is compared.
    """
    settings, others = _settings(first, [pair.first for pair in pairs]), _settings(second, [p.second for p in pairs])
    same_job = settings.get("job", others.get("job")) == others.get("job", settings.get("job"))
    known = all(of.note.thresholds is not None for of in (first, second))
    lines = []
    for name in dict.fromkeys([*settings, *others]):
        in_both = name in settings and name in others
        if in_both or (same_job and name != "job" and (known or not name.startswith(_THRESHOLD))):
            a, b = settings.get(name, {None}), others.get(name, {None})
            if a != b and min(len(a), len(b)) == 1:
                lines.append(f"{name}: {_text(a)} in A, {_text(b)} in B")
    return tuple(lines)


_THRESHOLD = "threshold "


def _settings(of: Side, slices: Sequence[FittedSlice]) -> dict[str, set[Scalar | None]]:
    """Job, parameters and thresholds -> the values among the trials of some slices, defaults filled in."""
    rows = np.concatenate([part.slice.rows for part in slices])
    return {
        **({"job": {of.note.job}} if of.note.job else {}),
        **{name: {column[row] for row in rows} for name, column in of.table.params.items()},
        **{f"{_THRESHOLD}{name}": {value} for name, value in (of.note.thresholds or {}).items()},
    }


def _text(values: Set[Scalar | None]) -> str:
    if len(values) > 1:
        return f"{len(values)} values"
    (value,) = values
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _key(part: FittedSlice) -> tuple[Any, ...]:
    # A number is the same whether the record kept it as an integer or not.
    fixed = {name: float(value) if is_number(value) else value for name, value in part.slice.fixed.items()}
    return tuple(sorted(axis.name for axis in part.slice.axes)), tuple(sorted(fixed.items(), key=repr))


def _called(part: FittedSlice) -> str:
    return " x ".join(axis.name for axis in part.slice.axes) + (f" at {part.slice.title}" if part.slice.title else "")


def _common(part: FittedSlice, other: FittedSlice) -> tuple[BoxAxis, ...]:
    theirs = {axis.name: axis for axis in other.slice.axes}
    common = []
    for axis in part.slice.axes:
        same = theirs[axis.name]
        low, high = max(axis.low, same.low), min(axis.high, same.high)
        if not low < high:
            ranges = f"{axis.low:g} to {axis.high:g} and {same.low:g} to {same.high:g}"
            raise NotComparable(f"the ranges of {axis.name} do not overlap: {ranges}")
        common.append(replace(axis, low=low, high=high))
    return tuple(common)


def _cells(of: Side, pairs: Sequence[Pair], which: int) -> tuple[int, float, float] | None:
    """See `Comparison.cells`."""
    if not of.is_grid:
        return None
    count, by_other, by_own = 0, 0, 0
    majority = of.diagram.majority
    for pair in pairs:
        own = pair.side(which).slice
        cells, trials = np.unique(of.diagram.cell[own.rows], return_index=True)
        at = pair.common(which, own.x[trials])
        inside = ((at >= -1e-9) & (at <= 1 + 1e-9)).all(axis=1) & (majority[cells] >= 0)
        at = np.clip(at[inside], 0, 1)
        raw = pair.codes[which][majority[cells[inside]]]
        count += len(raw)
        by_other += int((pair.label(1 - which, at) != raw).sum())
        by_own += int((pair.label(which, at) != raw).sum())
    return (count, by_other / count, by_own / count) if count else None


def report(comparison: Comparison) -> list[str]:
    """The comparison in words."""
    lines = []
    sides = (("A", comparison.first), ("B", comparison.second))
    for which, of in sides:
        trials, settings = of.counted
        kind = "a grid" if of.is_grid else "scattered"
        without = f"; left out: {'; '.join(of.left_out)}" if of.left_out else ""
        lines.append(f"{which}  {of.name}: {trials:,} trials with a result, {settings:,} settings ({kind}){without}")
    lines += findings(comparison)
    if len(comparison.pairs) > 1:
        for pair, (share, sure) in zip(comparison.pairs, comparison.by_slice, strict=True):
            lines.append(f"      at {pair.title}: {share:.2%} of the area, {sure:.2%} outside both bands")
    lines += [f"in one of them only: {text}" for text in comparison.unmatched]
    if comparison.differences:
        lines.append(
            "note: the two sweeps differ in what they train or how it is labelled, so the difference of the maps is "
            "not one of method:"
        )
        lines += [f"      {text}" for text in comparison.differences]
    for which, of in sides:
        unknown = [name for name in ("job", "thresholds") if not getattr(of.note, name)]
        if unknown:
            lines.append(f"note: the table of {which} does not contain its {' and '.join(unknown)}: not compared")
        if of.stale:
            lines.append(
                f"note: {plural(of.stale, 'trial')} of {which} have labels under other thresholds (`phases:`) than "
                "its file's: `phasefront map` labels them again"
            )
    return lines


def findings(comparison: Comparison) -> list[str]:
    """How much the two maps differ."""
    lines = [
        f"the maps differ in {comparison.area:.2%} of the area, and in {comparison.sure_area:.2%} outside both bands",
        f"the 90% bands cover {comparison.unsure[0]:.2%} (A) and {comparison.unsure[1]:.2%} (B) of the area",
    ]
    for which, other, cells in (("A", "B", comparison.cells[0]), ("B", "A", comparison.cells[1])):
        if cells is not None:
            count, by_other, by_own = cells
            lines.append(
                f"the most frequent phase of {which}'s {count:,} grid cells differs from {other}'s map in "
                f"{by_other:.2%} of the cells, and from {which}'s own map in {by_own:.2%}"
            )
    return lines
