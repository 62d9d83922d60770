"""Boundaries as polylines: between the settings of a grid, and between the classes that a classifier believes in.

On a grid, a boundary is the line on which a phase's share of the replicates is 1/2, interpolated linearly between the
centres of the cells in the axes' own coordinates (log10 on a log axis). With one replicate it runs half-way between
neighbouring settings whose labels differ: its position is known no better than the grid.

In a classifier's plane, a boundary is the line on which two classes are believed equally. Its topology comes from the
raster of leading classes; each vertex is then located on its edge of the raster by bisection of the belief itself. With
more than two classes, a line runs between the two that lead on its two sides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray

from orchestrator.phases.map.raster import SURE, Belief, Raster, leading
from orchestrator.phases.scale import AxisScale
from orchestrator.surface.base import Points

Line = NDArray[np.float64]
"""(P, 2) points, x and y; a closed line ends where it began."""

BISECTIONS = 16
"""An edge of 1/200 of the box is halved this often: vertices are known to 1e-7 of the box."""
FARTHEST = 0.5
"""How far along the normal the ends of the band are searched for, in box widths."""
_STEPS = 14
_SLOPE = 1e-3
_LEAST_WEIGHT = 1e-3
"""Keeps an interpolated vertex away from the ends of its edge, so that the edge can be told from the vertex."""


def boundary(x: AxisScale, y: AxisScale, share: NDArray[np.float64]) -> list[Line]:
    """The boundaries on a grid of shares (X, Y, L), in drawing positions; no line is drawn beside a hole (NaN).

    No line crosses a text axis, nor the gap to a column that is set apart.
    """
    if not (x.numeric and y.numeric):
        return []
    inner = share[x.special :, y.special :]
    u, v = x.position[x.special :], y.position[y.special :]
    winner = np.nan_to_num(inner).argmax(axis=2)
    present = np.flatnonzero(np.nan_to_num(inner).max(axis=(0, 1), initial=0) > 0)
    return [
        line
        for label in present
        # Of two labels that share a tie the first has it, as on the map: so their boundaries coincide.
        for line in half_level(u, v, inner[:, :, label], winner == label, joined=bool(label == present[0]))
    ]


def half_level(
    u: NDArray[np.float64],
    v: NDArray[np.float64],
    share: NDArray[np.float64],
    ties: NDArray[np.bool_] | bool = False,
    *,
    joined: bool = False,
) -> list[Line]:
    """Polylines where `share` (U, V), given at the points u x v, is 1/2; a hole is NaN.

    A share of exactly 1/2 counts as above where `ties` (U, V) says so. In a saddle the mean of the four corners decides
    which of them are connected; where that is 1/2 too, the upper ones are if `joined`.
    """
    above = np.where((share == 0.5) & ties, np.nextafter(0.5, 1), share)
    return _contours(above, np.nextafter(0.5, 0) if joined else 0.5, u, v)


def band_edges(raster: Raster) -> list[Line]:
    """The lines in the unit square that bound the band of a raster."""
    return _contours(raster.lead, SURE, raster.points, raster.points)


def outlines(inside: NDArray[np.bool_], weight: NDArray[np.float64]) -> list[Points]:
    """The lines that separate the points of a lattice (U, V) that are `inside` from the others.

    Each vertex is the middle of the lattice edge that the line crosses, in units of the indices: (3.5, 2) lies between
    the points (3, 2) and (4, 2). In a saddle the corners with the larger `weight` (U, V) in sum are connected; where it
    is NaN, there is a hole.
    """
    clipped = np.clip(weight, _LEAST_WEIGHT, 1)
    lines = _contours(np.where(inside, clipped, -clipped), 0.0)
    return [(np.floor(line) + np.ceil(line)) / 2 for line in (line.round(6) for line in lines)]


def outlines_of_labels(label: NDArray[np.int64]) -> list[Points]:
    """The outlines of every class on a lattice of labels (U, V), see `outlines`; a negative label is a hole."""
    lines: list[Points] = []
    for k in (present := np.unique(label[label >= 0])):
        # In saddles the first class is connected, and no other one: so outlines that meet coincide.
        weight = np.where((label == k) == (k == present[0]), 1.0, 0.9)
        lines += outlines(label == k, np.where(label < 0, np.nan, weight))
    return lines


def _contours(
    value: NDArray[np.float64],
    level: float,
    u: NDArray[np.float64] | None = None,
    v: NDArray[np.float64] | None = None,
) -> list[Line]:
    if min(value.shape) < 2:
        return []
    generator = contour_generator(u, v, np.ma.masked_invalid(value.T), corner_mask=False)
    return cast("list[Line]", generator.lines(level))


@dataclass(frozen=True, kw_only=True, eq=False)
class Crossing:
    """One polyline between class `a` and class `b` (a < b) in the unit square."""

    a: int
    b: int
    points: Points
    """(P, 2)"""
    offsets: NDArray[np.float64]
    """(P, 2) the band given these seeds: signed distances along `normal` at which class `a` has 5% of the belief, and
    95%; in box widths.

    The first is <= 0, the second >= 0; NaN where the belief does not get there within the box and 1/2 of its width.
    """
    over_seeds: NDArray[np.float64]
    """(P, 2) the same of the band over seeds; NaN without one."""
    normal: Points
    """(P, 2) unit vectors towards class `a`, in the unit square."""

    def ends(self, *, over_seeds: bool = False) -> tuple[Points, Points]:
        """(P, 2) each: the two ends of a band, where class `a` has 5% and 95% of the belief."""
        offsets = self.over_seeds if over_seeds else self.offsets
        low, high = (self.points + offset[:, None] * self.normal for offset in offsets.T)
        return low, high


def crossings(
    belief: Belief,
    raster: Raster,
    *,
    stride: int = 2,
    given_seeds: Belief | None = None,
    over_seeds: Belief | None = None,
) -> list[Crossing]:
    """Every boundary of a plane.

    Args:
        belief: of the plane.
        raster: of that belief.
        stride: use every so many points of the raster, which sets the distance between vertices.
        given_seeds: what the band given these seeds is taken from; by default `belief`.
        over_seeds: what the band over seeds is taken from; without it there is none.
    """
    bands = (given_seeds or belief, over_seeds)
    shares = raster.belief[::stride, ::stride]
    label = leading(shares)
    lines = []
    for a in np.unique(label):
        rest = np.delete(shares, a, axis=2).max(axis=2, initial=-np.inf)
        for outline in outlines(label == a, np.abs(shares[:, :, a] - rest)):
            lines += [
                _with_bands(belief, bands, int(a), b, points) for b, points in _pieces(int(a), outline, label, belief)
            ]
    return lines


def _pieces(a: int, outline: Points, label: NDArray[np.int64], belief: Belief) -> Iterator[tuple[int, Points]]:
    """The parts of class `a`'s outline beyond which one class `b` > a leads (the others are in b's own outline)."""
    first, last = np.floor(outline).astype(np.int64), np.ceil(outline).astype(np.int64)
    inside = (label[first[:, 0], first[:, 1]] == a)[:, None]
    squares = len(label) - 1
    points, other = _bisect(belief, a, np.where(inside, first, last) / squares, np.where(inside, last, first) / squares)
    if len(outline) > 2 and (outline[0] == outline[-1]).all() and len(set(other)) > 1:
        # Begin a closed line where the other class changes, so that no piece is cut in two.
        start = int(np.flatnonzero(other[1:] != other[:-1])[0]) + 1
        points, other = np.roll(points[:-1], -start, axis=0), np.roll(other[:-1], -start)
    cuts = [0, *(np.flatnonzero(other[1:] != other[:-1]) + 1), len(other)]
    for begin, end in itertools.pairwise(cuts):
        if other[begin] > a and end - begin > 1:
            yield int(other[begin]), points[begin:end]


def _bisect(belief: Belief, a: int, within: Points, beyond: Points) -> tuple[Points, NDArray[np.int64]]:
    """Where between `within` (a leads) and `beyond` (it does not) it stops to lead, and which class leads there."""
    low, high = within.copy(), beyond.copy()
    other = leading(belief(high))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        first = leading(belief(middle))
        leads = first == a
        low[leads], high[~leads] = middle[leads], middle[~leads]
        other = np.where(leads, other, first)
    return (low + high) / 2, np.asarray(other, dtype=np.int64)


def _with_bands(belief: Belief, bands: tuple[Belief, Belief | None], a: int, b: int, points: Points) -> Crossing:
    normal = _normals(belief, a, b, points)

    def offsets(band: Belief | None) -> NDArray[np.float64]:
        if band is None:
            return np.full((len(points), 2), np.nan)
        return np.column_stack([-_reach(band, b, points, -normal), _reach(band, a, points, normal)])

    given, over = bands
    return Crossing(a=a, b=b, points=points, offsets=offsets(given), over_seeds=offsets(over), normal=normal)


def _normals(belief: Belief, a: int, b: int, points: Points) -> Points:
    """Unit vectors up the slope of belief in `a` over `b`; across the line where that has no slope."""
    count = len(points)
    step = np.concatenate([np.eye(2), -np.eye(2)]) * _SLOPE
    at = np.clip(points[None] + step[:, None], 0, 1)
    asked = belief(at.reshape(-1, 2))
    excess = (asked[:, a] - asked[:, b]).reshape(4, count)
    apart = np.stack([at[0, :, 0] - at[2, :, 0], at[1, :, 1] - at[3, :, 1]])  # less at an edge of the box
    slope = ((excess[:2] - excess[2:]) / apart).T
    along = np.gradient(points, axis=0)
    across = np.column_stack([-along[:, 1], along[:, 0]])
    size = np.linalg.norm(slope, axis=1)
    across *= np.where((across * slope).sum(axis=1) < 0, -1, 1)[:, None]
    chosen = np.where((size > 1e-6)[:, None], slope, across)
    length = np.linalg.norm(chosen, axis=1, keepdims=True)
    return np.asarray(chosen / np.where(length > 0, length, 1), dtype=np.float64)


def _reach(belief: Belief, towards: int, points: Points, direction: Points) -> NDArray[np.float64]:
    """How far along `direction` until class `towards` has 95% of the belief; NaN where that is nowhere in the box."""
    with np.errstate(divide="ignore", invalid="ignore"):
        leave = np.where(direction > 0, (1 - points) / direction, np.where(direction < 0, -points / direction, np.inf))
    farthest = np.minimum(leave.min(axis=1), FARTHEST)
    shares = np.concatenate([[0.0], np.geomspace(1e-3, 1, _STEPS)])
    low, high = np.zeros(len(points)), np.full(len(points), np.nan)
    open_ = np.arange(len(points))
    for near, far in itertools.pairwise(shares):
        at = points[open_] + (far * farthest[open_])[:, None] * direction[open_]
        sure = belief(np.clip(at, 0, 1))[:, towards] >= SURE
        low[open_[sure]], high[open_[sure]] = near * farthest[open_[sure]], far * farthest[open_[sure]]
        open_ = open_[~sure]
        if not len(open_):
            break
    reached = np.flatnonzero(np.isfinite(high))
    for _ in range(12):
        middle = (low[reached] + high[reached]) / 2
        at = points[reached] + middle[:, None] * direction[reached]
        sure = belief(np.clip(at, 0, 1))[:, towards] >= SURE
        high[reached[sure]], low[reached[~sure]] = middle[sure], middle[~sure]
    return high
