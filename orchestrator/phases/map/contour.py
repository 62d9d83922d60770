"""Boundaries as polylines: between the settings of a grid, and between the classes that a classifier believes in.

On a grid, a boundary is the line on which the most frequent phase changes. Between neighbouring settings whose most
frequent phases differ, it runs where the shares of these two are equal, interpolated linearly in the axes' own
coordinates (log10 on a log axis). With one replicate that is half-way: its position is known no better than the grid.
Between four settings that have three or four phases, the lines meet in one point.

In a classifier's plane, a boundary is the line on which two classes are believed equally. Its topology comes from the
raster of leading classes; each vertex is then located on its edge of the raster by bisection of the belief itself. With
more than two classes, a line runs between the two that lead on its two sides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
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
    known = ~np.isnan(inner).any(axis=2)
    label = np.where(known, leading(np.nan_to_num(inner)), -1)
    corners = np.stack([label[:-1, :-1], label[1:, :-1], label[1:, 1:], label[:-1, 1:]])
    crossed = (corners.min(axis=0) != corners.max(axis=0)) & (corners.min(axis=0) >= 0)
    steps: list[Line] = []
    for i, j in np.argwhere(crossed).tolist():
        at = (i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)
        share_at = np.array([inner[corner] for corner in at])
        steps += _in_square(np.array(at, dtype=np.float64), share_at, [int(label[corner]) for corner in at])
    where = np.arange(len(u)), np.arange(len(v))
    return [
        np.column_stack([np.interp(line[:, k], where[k], axis) for k, axis in enumerate((u, v))])
        for line in _joined(steps)
    ]


def _in_square(points: Points, share: NDArray[np.float64], label: Sequence[int]) -> list[Line]:
    """The boundary between four settings: their places (4, 2) in a ring, shares (4, L) and most frequent labels."""
    crossing: dict[int, NDArray[np.float64]] = {}
    for k, (a, b) in enumerate(zip(label, [*label[1:], label[0]], strict=True)):
        if a != b:
            first, second = share[k, a] - share[k, b], share[k - 3, b] - share[k - 3, a]
            crossing[k] = points[k] + first / (first + second) * (points[k - 3] - points[k])
    at = list(crossing.values())
    if len(at) == 2:
        return [np.array(at)]
    if len(at) == 4 and (label[0] == label[2] or label[1] == label[3]):
        # A saddle: the corners of the same phase are joined; of two such pairs, those that are surer, then the first.
        top = np.sort(share, axis=1)
        sure = np.round((top[:, -1] - top[:, -2]).reshape(2, 2).sum(axis=0), 9).tolist()
        odd = label[0] != label[2] or (label[1] == label[3] and (sure[1], label[0]) > (sure[0], label[1]))
        return [np.array([at[k], at[k - 3]]) for k in ((1, 3) if odd else (0, 2))]
    return [np.array([end, np.mean(at, axis=0)]) for end in at]


def _joined(steps: Sequence[Line]) -> list[Line]:
    """Steps between two points of a lattice, as lines that begin and end where other than two steps meet."""
    kept = {frozenset(ends): ends for step in steps if len(set(ends := [tuple(p) for p in step.round(9).tolist()])) > 1}
    at: dict[tuple[float, ...], list[frozenset[tuple[float, ...]]]] = {}
    for step in kept:
        for point in step:
            at.setdefault(point, []).append(step)

    def walk(here: tuple[float, ...]) -> Iterator[tuple[float, ...]]:
        yield here
        while (step := next((step for step in at[here] if step in kept), None)) is not None:
            del kept[step]
            (here,) = step - {here}
            yield here
            if len(at[here]) != 2:
                return

    lines = [list(walk(point)) for point, met in at.items() if len(met) != 2 for _ in met]
    while kept:  # closed lines
        lines.append(list(walk(next(iter(kept.values()))[0])))
    return [np.array(line) for line in lines if len(line) > 1]


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
