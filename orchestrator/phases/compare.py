"""Two phase maps of the same axes, drawn by the same classifier, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.job import Scalar
from orchestrator.axes import Axis
from orchestrator.phases.compare_settings import Settings, differences
from orchestrator.phases.diagram import PhaseDiagram, phase_diagram
from orchestrator.phases.map.box import BoxAxis
from orchestrator.phases.map.classify import classify
from orchestrator.phases.map.raster import in_chunks
from orchestrator.phases.map.surface_map import FittedMap, FittedSlice
from orchestrator.phases.table import TrialTable
from orchestrator.phases.text import plural
from orchestrator.surface.base import ClassSurface, Points, Surrogate, lattice
from orchestrator.target import PhaseTarget

PROBES = 2**16
"""Positions at which the two maps are asked whether they agree."""


class NotComparable(ValueError):
    """Two sweeps without a common plane; the text says why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """One of the two maps."""

    name: str
    table: TrialTable
    axes: Sequence[Axis]
    phases: Sequence[str]
    diagram: PhaseDiagram
    found: FittedMap
    job: str = ""
    """As the sweep file names it; "" where that is not known."""
    thresholds: Mapping[str, Scalar] | None = None
    """All that the phases are decided by; None where they are not known."""
    listed: bool = False
    """See `classify`."""
    stale: int = 0
    """Trials whose labels are of other thresholds than these."""

    @property
    def counted(self) -> tuple[int, int]:
        """(trials with a result, their settings) of the slices that have a map."""
        rows = np.concatenate([np.zeros(0, dtype=np.int64), *(one.rows for one in self.found.fitted)])
        return len(rows), len(np.unique(self.diagram.cell[rows]))

    @property
    def left_out(self) -> tuple[str, ...]:
        """The slices that have no map: which, how many of its trials have a result, and why."""
        return tuple(
            f"{one.slice.title or 'all of it'} ({plural(len(one.evidence), 'trial')} with a result), "
            + ("where fewer than two numeric axes vary" if len(one.slice.axes) < 2 else "where no map can be fitted")
            for one in self.found.slices
            if one.surface is None
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

    def label(self, which: int, x: Points) -> NDArray[np.int64]:
        """(q,) the class of side 0 or 1, among the common labels, at positions in the common box."""
        surface = (self.first, self.second)[which].surface
        assert isinstance(surface, ClassSurface)
        leading = in_chunks(surface.belief, self.own(which, x)).argmax(axis=1)
        return np.asarray(self.codes[which][leading], dtype=np.int64)

    def in_band(self, which: int, x: Points) -> NDArray[np.bool_]:
        """(q,) whether side 0 or 1 is unsure there."""
        surface = (self.first, self.second)[which].surface
        assert isinstance(surface, ClassSurface)
        at = self.own(which, x)
        return np.asarray(in_chunks(lambda q: surface.in_band(q).astype(np.float64), at) > 0, dtype=np.bool_)

    def own(self, which: int, x: Points) -> Points:
        """Positions in the common box as positions in the box of side 0 or 1."""
        mine = {axis.name: axis for axis in (self.first, self.second)[which].slice.axes}
        columns = [mine[axis.name].unit(axis.value(x[:, k])) for k, axis in enumerate(self.axes)]
        order = [axis.name for axis in self.axes]
        return np.column_stack([columns[order.index(name)] for name in mine])


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
    """The share in which they differ although both are sure (at least 95% belief on either side)."""
    unsure: tuple[float, float]
    """The share that lies in the band of either side."""
    cells: tuple[tuple[int, float, float] | None, tuple[int, float, float] | None]
    """Of either side that is a grid: its settings in the common box, and the shares of them at which most replicates
    show another class than the other side's map, and than its own map."""
    unmatched: tuple[str, ...]
    """Slices that only one of them has."""
    differences: tuple[str, ...]
    """What else differs between the two sweeps, besides where their trials lie: see `differences`."""


def side(
    name: str,
    table: TrialTable,
    axes: Sequence[Axis],
    phases: Sequence[str],
    *,
    listed: bool = False,
    surrogate: Surrogate[Any] | None = None,
    job: str = "",
    thresholds: Mapping[str, Scalar] | None = None,
    stale: int = 0,
) -> Side:
    """Fit the classifier to a table of trials; `listed`: see `classify`."""
    diagram = phase_diagram(name, axes, phases, table, {})
    found = classify(PhaseTarget(), diagram, table, axes, (), surrogate, listed=listed)
    return Side(
        name=name,
        table=table,
        axes=axes,
        phases=phases,
        diagram=diagram,
        found=found,
        job=job,
        thresholds=thresholds,
        listed=listed,
        stale=stale,
    )


def compare(first: Side, second: Side) -> Comparison:
    """Compare two maps.

    Raises:
        NotComparable: they have no slice with the same two or more numeric axes, or their ranges do not overlap.
    """
    labels = tuple(dict.fromkeys([*first.found.labels, *second.found.labels]))
    codes = (
        np.array([labels.index(label) for label in first.found.labels], dtype=np.int64),
        np.array([labels.index(label) for label in second.found.labels], dtype=np.int64),
    )
    others = {_key(one): one for one in second.found.fitted}
    pairs, alone = [], []
    for one in first.found.fitted:
        other = others.pop(_key(one), None)
        if other is None:
            alone.append(f"{first.name}: {_called(one)}")
            continue
        pairs.append(Pair(title=one.slice.title, first=one, second=other, axes=_common(one, other), codes=codes))
    alone += [f"{second.name}: {_called(other)}" for other in others.values()]
    if not pairs:
        raise NotComparable(f"no slice has the same axes in both: {'; '.join(alone) or 'neither has a map'}")
    differ, sure, unsure = [], [], []
    for pair in pairs:
        at = lattice(PROBES, len(pair.axes))
        band = [pair.in_band(which, at) for which in (0, 1)]
        apart = pair.label(0, at) != pair.label(1, at)
        differ.append(float(apart.mean()))
        sure.append(float((apart & ~band[0] & ~band[1]).mean()))
        unsure.append([float(b.mean()) for b in band])
    both = np.mean(unsure, axis=0)
    return Comparison(
        first=first,
        second=second,
        labels=labels,
        pairs=tuple(pairs),
        area=float(np.mean(differ)),
        sure_area=float(np.mean(sure)),
        unsure=(float(both[0]), float(both[1])),
        cells=(_cells(first, pairs, 0), _cells(second, pairs, 1)),
        unmatched=tuple(alone),
        differences=differences(
            _settings(first, [pair.first for pair in pairs]), _settings(second, [pair.second for pair in pairs])
        ),
    )


def _settings(of: Side, slices: Sequence[FittedSlice]) -> Settings:
    """What one side has trained with in the slices that are compared."""
    rows = np.concatenate([one.slice.rows for one in slices])
    params = {name: {column[row] for row in rows} for name, column in of.table.params.items()}
    return Settings(job=of.job, thresholds=of.thresholds, params=params)


def _key(one: FittedSlice) -> tuple[Any, ...]:
    # A number is the same whether the record kept it as whole or not.
    fixed = {name: _plain(value) for name, value in one.slice.fixed.items()}
    return tuple(sorted(axis.name for axis in one.slice.axes)), tuple(sorted(fixed.items(), key=repr))


def _plain(value: Scalar | None) -> Scalar | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _called(one: FittedSlice) -> str:
    return " x ".join(axis.name for axis in one.slice.axes) + (f" at {one.slice.title}" if one.slice.title else "")


def _common(one: FittedSlice, other: FittedSlice) -> tuple[BoxAxis, ...]:
    theirs = {axis.name: axis for axis in other.slice.axes}
    common = []
    for axis in one.slice.axes:
        same = theirs[axis.name]
        low, high = max(axis.low, same.low), min(axis.high, same.high)
        if not low < high:
            ranges = f"{axis.low:g} to {axis.high:g} and {same.low:g} to {same.high:g}"
            raise NotComparable(f"the ranges of {axis.name} do not overlap: {ranges}")
        common.append(BoxAxis(name=axis.name, label=axis.label, kind=axis.kind, low=low, high=high))
    return tuple(common)


def _cells(which: Side, pairs: Sequence[Pair], index: int) -> tuple[int, float, float] | None:
    """See `Comparison.cells`."""
    if not which.is_grid:
        return None
    count, by_other, by_own = 0, 0, 0
    majority = which.diagram.majority
    for pair in pairs:
        mine = (pair.first, pair.second)[index]
        cells, one_each = np.unique(which.diagram.cell[mine.slice.rows], return_index=True)
        settings = mine.slice.x[one_each]
        at = np.column_stack(
            [
                axis.unit(own.value(settings[:, k]))
                for axis in pair.axes
                for k, own in enumerate(mine.slice.axes)
                if own.name == axis.name
            ]
        )
        inside = ((at >= -1e-9) & (at <= 1 + 1e-9)).all(axis=1) & (majority[cells] >= 0)
        at = np.clip(at[inside], 0, 1)
        raw = pair.codes[index][majority[cells[inside]]]
        count += len(raw)
        by_other += int((pair.label(1 - index, at) != raw).sum())
        by_own += int((pair.label(index, at) != raw).sum())
    return (count, by_other / count, by_own / count) if count else None


def report(found: Comparison) -> list[str]:
    """The comparison in words."""
    lines = []
    for which, one in zip("AB", (found.first, found.second), strict=True):
        trials, settings = one.counted
        kind = "a grid" if one.is_grid else "scattered"
        without = f"; left out: {'; '.join(one.left_out)}" if one.left_out else ""
        lines.append(f"{which}  {one.name}: {trials:,} trials with a result, {settings:,} settings ({kind}){without}")
    lines += findings(found)
    lines += [f"in one of them only: {text}" for text in found.unmatched]
    if found.differences:
        lines.append(
            "note: the two sweeps differ in what they train or how it is labelled, so the difference of the maps is "
            "not one of method:"
        )
        lines += [f"      {text}" for text in found.differences]
    for which, one in zip("AB", (found.first, found.second), strict=True):
        unknown = [text for text, known in (("job", one.job), ("thresholds", one.thresholds)) if not known]
        if unknown:
            lines.append(f"note: the table of {which} does not say its {' and '.join(unknown)}: not compared")
        if one.stale:
            lines.append(
                f"note: {plural(one.stale, 'trial')} of {which} have labels under other thresholds than its file's: "
                "`phasefront map` labels them anew"
            )
    return lines


def findings(found: Comparison) -> list[str]:
    """In how much the two maps differ."""
    lines = [
        f"the maps differ in {found.area:.2%} of the area, and in {found.sure_area:.2%} where both are sure",
        f"in their 90% bands lie {found.unsure[0]:.2%} (A) and {found.unsure[1]:.2%} (B) of it",
    ]
    for which, other, cells in (("A", "B", found.cells[0]), ("B", "A", found.cells[1])):
        if cells is not None:
            count, by_other, by_own = cells
            lines.append(
                f"of the {count:,} cells of {which}'s grid most replicates show another phase than {other}'s map in "
                f"{by_other:.2%}, and than {which}'s own map in {by_own:.2%}"
            )
    return lines
