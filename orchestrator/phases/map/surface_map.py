"""A phase map drawn by a classifier: its belief over every slice of a sweep, and where one phase ends.

Shapes: n trials of a slice, d of its axes, K labels. The surfaces are given: the caller fits them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from jobs.job import Scalar
from orchestrator.phases.map.box import BoxAxis, TrialSlice
from orchestrator.phases.map.contour import Crossing, crossings
from orchestrator.phases.map.raster import Belief, Raster, in_chunks, plane, rasterise
from orchestrator.phases.text import named, number, place_text, plural
from orchestrator.surface.base import ClassSurface, Evidence, Points, RidgeSurface, Surface, lattice
from orchestrator.surface.seeds import SeedBands, SeedSurface, fit_bands

Fit = Callable[[Evidence], Surface]
"""Fits a surface to trials: the same for search, map and comparison."""

Spread = Mapping[str, tuple[float, float] | None]
"""Axis that is held -> the smallest and the largest value of the trials that are drawn; None: all are where it is."""

MOST_SHOWN = {3: 6, 4: 9}
"""Planes drawn of a slice of so many axes."""
STACK = {3: 16, 4: 36}
"""Planes in which the boundary of a slice of so many axes is kept as data."""
DRAWING = {2: (50, 3), 3: (50, 2), 4: (40, 2)}
"""Squares along a side of the first raster, and halvings, of a plane that is drawn."""
BAND_COARSE = 25
"""Squares along a side of the first raster of a band: its belief costs more, and varies over longer distances."""
KEEPING = {3: (25, 2), 4: (20, 2)}
"""The same for planes of the stack."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedSlice:
    """The trials of one slice and the surface fitted to them."""

    slice: TrialSlice
    evidence: Evidence
    """Those of its trials that ended with a result, in the order in which they were reported."""
    rows: NDArray[np.int64]
    """(n,) the row in the table of each trial of `evidence`."""
    surface: Surface | None
    """None where it has fewer than two axes, or nothing to fit to."""
    fit: Fit
    """What fitted the surface, and can fit others to other trials."""
    replicate: NDArray[np.int64] | None = None
    """(n,) of each trial of `evidence`: equal numbers share a seed. None: unknown, and there are no bands."""

    @cached_property
    def bands(self) -> SeedBands | None:
        """The bands given these seeds and over seeds; None where no boundary of classes was found."""
        if self.replicate is None or not isinstance(self.surface, ClassSurface):
            return None
        return fit_bands(self.evidence.x, self.evidence.label, self.replicate, classes=self.surface.classes)


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedMap:
    """All slices of one sweep."""

    labels: tuple[str, ...]
    """(K,) what the classes are called."""
    slices: tuple[FittedSlice, ...]

    @property
    def fitted(self) -> tuple[FittedSlice, ...]:
        """Those that have a surface."""
        return tuple(part for part in self.slices if part.surface is not None)

    def uncertain_area(self) -> float:
        """The mean over the slices of the share of each box that lies in the band; NaN where none is fitted."""
        areas = [part.surface.uncertain_area() for part in self.slices if part.surface is not None]
        return float(np.mean(areas)) if areas else float("nan")


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """Two axes of a slice, the others held at a position: what one panel shows."""

    fixed: Mapping[str, Scalar | None]
    """Axis -> value, in axis units, of everything that is held."""
    x: BoxAxis
    y: BoxAxis
    raster: Raster
    lines: tuple[Crossing, ...]
    belief: Belief
    given_seeds: Raster | None = None
    """What the band given these seeds is taken from; None: the raster itself."""
    over_seeds: Raster | None = None
    """What the band over seeds is taken from; None: there is none."""
    near: NDArray[np.int64]
    """Trials of the slice's evidence that belong to this plane rather than to another one."""
    at: Points
    """(len(near), 2) where they are in it."""
    part: int = 0
    """Its part of the further axes, in the order of `held_positions`."""
    spread: Spread
    """Of those trials."""

    @property
    def called(self) -> str:
        """Where it is, with the names of the style."""
        return place_text(self.fixed)

    @property
    def shown(self) -> str:
        """Which trials are drawn in it; empty where nothing is cut."""
        return trials_text(len(self.near), self.spread)


def planes(fitted: FittedSlice, *, stack: bool = False) -> list[Plane]:
    """The planes of a slice, over its first two axes: those to draw, or the stack to write as data.

    A further axis is cut at its values, or in equal parts where it has none (see `BoxAxis.cuts`).
    """
    surface = fitted.surface
    if not isinstance(surface, ClassSurface):
        raise TypeError("only a belief in classes has planes")
    axes = fitted.slice.axes
    most = (STACK if stack else MOST_SHOWN).get(len(axes), 1)
    coarse, halvings = (KEEPING if stack else DRAWING).get(len(axes), DRAWING[2])
    labels = fitted.evidence.label
    made = []
    for part, (held, near) in enumerate(held_positions(fitted.evidence.x, axes, most)):
        belief = plane(surface, 0, 1, held)
        at = fitted.evidence.x[near][:, :2]
        labelled = labels[near] >= 0
        hints = (at[labelled], labels[near][labelled]) if not held else (at[:0], labels[:0])
        raster = rasterise(belief, *hints, coarse=coarse, halvings=halvings)
        given = over = None
        if fitted.bands is not None:
            given, over = (_band_raster(band, held, halvings) for band in fitted.bands.both)
        made.append(
            Plane(
                fixed={**fitted.slice.fixed, **held_values(axes, held)},
                x=axes[0],
                y=axes[1],
                raster=raster,
                belief=belief,
                lines=tuple(
                    crossings(
                        belief,
                        raster,
                        stride=2 if halvings > 2 else 1,
                        given_seeds=None if given is None else given.at,
                        over_seeds=None if over is None else over.at,
                    )
                ),
                given_seeds=given,
                over_seeds=over,
                near=near,
                at=at,
                part=part,
                spread=spread_of(axes, held, fitted.evidence.x[near]),
            )
        )
    return made


def _band_raster(band: SeedSurface | None, held: Mapping[int, float], halvings: int) -> Raster | None:
    if band is None:
        return None
    none = np.empty((0, 2)), np.empty(0, dtype=np.int64)
    return rasterise(plane(band, 0, 1, held), *none, coarse=BAND_COARSE, halvings=halvings)


def held_positions(x: Points, axes: Sequence[BoxAxis], most: int) -> list[tuple[dict[int, float], NDArray[np.int64]]]:
    """Where the axes beyond the first two are cut, and which of the positions `x` (n, d) lie in each part."""
    others = range(2, len(axes))
    if not others:
        return [({}, np.arange(len(x)))]
    parts = max(1, round(most ** (1 / len(others))))
    cuts = [axes[axis].cuts(parts) for axis in others]
    part = np.column_stack(
        [np.searchsorted(bounds, x[:, a], "right") for a, (_, bounds) in zip(others, cuts, strict=True)]
    )
    return [
        (
            {axis: float(at[k]) for axis, k, (at, _) in zip(others, chosen, cuts, strict=True)},
            np.flatnonzero((part == np.array(chosen)).all(axis=1)),
        )
        for chosen in itertools.product(*(range(len(at)) for at, _ in cuts))
    ]


def held_values(axes: Sequence[BoxAxis], held: Mapping[int, float]) -> dict[str, float]:
    """Axis -> value, in axis units, of the axes that are held."""
    return {axes[axis].name: float(f"{axes[axis].value(np.array(at)):.12g}") for axis, at in held.items()}


def trials_text(count: int, spread: Spread) -> str:
    """See `Plane.shown`."""
    if not spread:
        return ""
    parts = [plural(count, "trial")]
    for name, ends in spread.items():
        if ends is not None:
            low, high = map(number, ends)
            parts.append(f"{named(name)} " * (len(spread) > 1) + (low if low == high else f"{low} to {high}"))
    return ", ".join(parts)


def spread_of(axes: Sequence[BoxAxis], held: Mapping[int, float], x: Points) -> Spread:
    """The spread of trials (n, d) about where axes are held."""
    spread: dict[str, tuple[float, float] | None] = {}
    for axis, at in held.items():
        away = np.abs(x[:, axis] - at).max(initial=0) > 1e-9
        low, high = axes[axis].value(np.array([x[:, axis].min(), x[:, axis].max()])).tolist() if away else (0, 0)
        spread[axes[axis].name] = (low, high) if away else None
    return spread


def expected_error(surface: ClassSurface, *, points: int = 4096) -> float:
    """The share of the box that the map is expected to get wrong: the mean of 1 - the leading class's belief.

    It is the classifier's own expectation, over `points` positions of a lattice.
    """
    lead = in_chunks(surface.belief, lattice(points, surface.dimensions)).max(axis=1)
    return float(1 - lead.mean())


def ridge_of(fitted: FittedSlice) -> RidgeSurface | None:
    """The slice's ridge; None for another target."""
    return fitted.surface if isinstance(fitted.surface, RidgeSurface) else None


def without_result(fitted: FittedSlice, rows: Sequence[int], plane: Plane) -> Points:
    """(f, 2) where trials of these rows of the table, which have no result, lie in a plane that is drawn."""
    x = fitted.slice.x[np.isin(fitted.slice.rows, rows)]
    axes = fitted.slice.axes
    return x[held_positions(x, axes, MOST_SHOWN.get(len(axes), 1))[plane.part][1]][:, :2]
