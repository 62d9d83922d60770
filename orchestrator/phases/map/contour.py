"""Where two classes are believed equally: polylines on a plane, every vertex found to far less than a raster's square.

The topology comes from marching squares on the raster of leading classes; each crossing is then found on its edge by
bisection of the belief itself. With more than two classes a line runs between the two that lead on its two sides.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.phases.map.boundary import Edge, contours
from orchestrator.phases.map.raster import SURE, Belief, Raster, leading
from orchestrator.surface.base import Points

BISECTIONS = 16
"""An edge of 1/200 of the box is halved so often: vertices are known to 1e-7 of it."""
FARTHEST = 0.5
"""How far along the normal the band's ends are looked for, in box widths."""
_STEPS = 14
_SLOPE = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class Crossing:
    """One polyline between class `a` and class `b` (a < b) in the unit square."""

    a: int
    b: int
    points: Points
    """(P, 2)"""
    offsets: NDArray[np.float64]
    """(P, 2) how far along `normal` the belief in `a` is 5% and the belief in `b`, and the other way round; box widths.

    The first is <= 0, the second >= 0; NaN where the belief is nowhere so sure, within the box and 1/2 of its width.
    """
    normal: Points
    """(P, 2) unit vectors towards class `a`, in the unit square."""

    def ends(self) -> tuple[Points, Points]:
        """(P, 2) each: the band's two ends, the one on b's side (belief in a 5%) and the one on a's side (95%)."""
        return (
            self.points + self.offsets[:, :1] * self.normal,
            self.points + self.offsets[:, 1:] * self.normal,
        )


def crossings(belief: Belief, raster: Raster, *, stride: int = 2) -> list[Crossing]:
    """Every boundary of a plane.

    Args:
        belief: of the plane.
        raster: of that belief.
        stride: take every so many points of the raster: how far apart vertices are.
    """
    shares = raster.belief[::stride, ::stride]
    label = leading(shares)
    squares = len(shares) - 1
    pieces: list[tuple[int, int, Points]] = []
    present = np.unique(label)
    for a in present:
        rest = shares.copy()
        rest[:, :, a] = -np.inf
        excess = shares[:, :, a] - rest.max(axis=2) if shares.shape[2] > 1 else np.ones(label.shape)
        for chain in contours(label == a, excess, saddle=bool(a == present[0])):
            pieces += _pieces(int(a), chain, label, belief, squares)
    return [_with_band(belief, a, b, points) for a, b, points in pieces]


def _pieces(
    a: int, chain: Sequence[Edge], label: NDArray[np.int64], belief: Belief, squares: int
) -> list[tuple[int, int, Points]]:
    """The parts of class `a`'s outline beyond which one class `b` > a leads (the others are in b's own outline)."""
    ends = np.array([((i, j), (i + 1, j) if along == 0 else (i, j + 1)) for along, i, j in chain])
    inside = label[ends[:, 0, 0], ends[:, 0, 1]] == a
    within = np.where(inside[:, None], ends[:, 0], ends[:, 1])
    beyond = np.where(inside[:, None], ends[:, 1], ends[:, 0])
    points, other = _bisect(belief, a, within / squares, beyond / squares)
    closed = len(chain) > 2 and chain[0] == chain[-1]
    if closed and len(set(other)) > 1:
        # Begin where the other class changes, so that no piece is cut in two.
        start = int(np.flatnonzero(other[1:] != other[:-1])[0]) + 1
        points, other = np.roll(points[:-1], -start, axis=0), np.roll(other[:-1], -start)
    cuts = [0, *(np.flatnonzero(other[1:] != other[:-1]) + 1), len(other)]
    found = []
    for first, last in itertools.pairwise(cuts):
        if other[first] > a and last - first > 1:
            found.append((a, int(other[first]), points[first:last]))
    return found


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


def _with_band(belief: Belief, a: int, b: int, points: Points) -> Crossing:
    normal = _normals(belief, a, b, points)
    offsets = np.column_stack([-_reach(belief, b, points, -normal), _reach(belief, a, points, normal)])
    return Crossing(a=a, b=b, points=points, offsets=offsets, normal=normal)


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
    found = np.flatnonzero(np.isfinite(high))
    for _ in range(12):
        middle = (low[found] + high[found]) / 2
        at = points[found] + middle[:, None] * direction[found]
        sure = belief(np.clip(at, 0, 1))[:, towards] >= SURE
        high[found[sure]], low[found[~sure]] = middle[sure], middle[~sure]
    return high
