"""A belief on a fine raster of a plane: exact where a boundary or its band runs, interpolated where all is certain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.surface.base import BAND, ClassSurface, Points

Belief = Callable[[Points], NDArray[np.float64]]
"""(q, 2) positions in the plane -> (q, K) beliefs."""

COARSE = 50
"""Squares along each side of the first raster."""
HALVINGS = 3
"""How often they are halved: 400 squares along each side at the end."""
CHUNK = 8192
"""Positions asked of a classifier at once: it may need memory in proportion to positions times trials."""
SURE = (1 + BAND) / 2
_CERTAIN = 0.98
"""Where the leading class has at least this belief in every corner, and all agree, nothing is looked for between."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Raster:
    """A belief at (N, N) points of the unit square, its edges included."""

    belief: NDArray[np.float64]
    """(N, N, K), x first."""
    asked: int
    """How many positions the classifier was asked."""

    @property
    def points(self) -> NDArray[np.float64]:
        """(N,) the positions along either axis."""
        return np.linspace(0, 1, len(self.belief))

    @property
    def label(self) -> NDArray[np.int64]:
        """(N, N) the leading class."""
        return leading(self.belief)

    @property
    def lead(self) -> NDArray[np.float64]:
        """(N, N) the leading class's belief."""
        return np.asarray(self.belief.max(axis=2), dtype=np.float64)

    @property
    def in_band(self) -> NDArray[np.bool_]:
        """(N, N) whether the leading class has less than 95% of the belief."""
        return self.lead < SURE


def leading(belief: NDArray[np.float64]) -> NDArray[np.int64]:
    """The class with the largest belief, along the last axis; of classes that tie but for rounding, the first."""
    return np.asarray(np.round(belief, 9).argmax(axis=-1), dtype=np.int64)


def plane(surface: ClassSurface, x: int, y: int, others: Mapping[int, float]) -> Belief:
    """The belief on the plane of axes `x` and `y`, where the other axes have these positions in the unit box."""

    def belief(at: Points) -> NDArray[np.float64]:
        full = np.empty((len(at), surface.dimensions))
        full[:, x], full[:, y] = at[:, 0], at[:, 1]
        for axis, value in others.items():
            full[:, axis] = value
        return in_chunks(surface.belief, full)

    return belief


def in_chunks(ask: Callable[[Points], NDArray[np.float64]], at: Points) -> NDArray[np.float64]:
    """`ask(at)`, a bounded number of positions at a time."""
    if len(at) <= CHUNK:
        return ask(at)
    return np.concatenate([ask(at[start : start + CHUNK]) for start in range(0, len(at), CHUNK)])


def rasterise(
    belief: Belief, hints: Points, labels: NDArray[np.int64], *, coarse: int = COARSE, halvings: int = HALVINGS
) -> Raster:
    """Evaluate a belief on a raster of `coarse * 2**halvings` squares along each side.

    Every square that could hold a boundary, a band's edge or a trial whose label is not the map's is evaluated down to
    the last halving, with the squares beside it. Elsewhere the raster is interpolated between corners that
    agree with belief 98% or more. An island that no trial hit, smaller than a coarse square, is not seen.

    Args:
        belief: of the plane.
        hints: (n, 2) positions of trials in the plane.
        labels: (n,) their classes.
        coarse: squares along a side to begin with.
        halvings: of every side.
    """
    side = np.linspace(0, 1, coarse + 1)
    found = belief(_nodes(side, side)).reshape(coarse + 1, coarse + 1, -1)
    asked = (coarse + 1) ** 2
    for level in range(halvings):
        squares = len(found) - 1
        wanted = _wanted(found, certain=_CERTAIN if level == 0 else SURE)
        if len(hints):
            i, j = np.clip((hints * squares).astype(np.int64), 0, squares - 1).T
            odd = found[i, j].argmax(axis=1) != labels
            wanted[i[odd], j[odd]] = True
        found, new = _halved(found), _dilated(wanted)
        ask = np.zeros(found.shape[:2], dtype=np.bool_)
        squares_i, squares_j = np.nonzero(new)
        for di in range(3):
            for dj in range(3):
                if di % 2 or dj % 2:  # the corners are known already
                    ask[2 * squares_i + di, 2 * squares_j + dj] = True
        at_i, at_j = np.nonzero(ask)
        if len(at_i):
            found[at_i, at_j] = belief(np.column_stack([at_i, at_j]) / (2 * squares))
        asked += len(at_i)
    return Raster(belief=found, asked=asked)


def _nodes(x: NDArray[np.float64], y: NDArray[np.float64]) -> Points:
    return np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)


def _wanted(found: NDArray[np.float64], *, certain: float) -> NDArray[np.bool_]:
    """(S, S) squares whose corners disagree in their label, or lie on both sides of certainty."""
    label, lead = leading(found), found.max(axis=2)
    corners = np.stack([label[:-1, :-1], label[1:, :-1], label[1:, 1:], label[:-1, 1:]])
    leads = np.stack([lead[:-1, :-1], lead[1:, :-1], lead[1:, 1:], lead[:-1, 1:]])
    differ = corners.min(axis=0) != corners.max(axis=0)
    low, high = leads.min(axis=0), leads.max(axis=0)
    unsure = low < certain if certain > SURE else (low < certain) & (high >= certain)
    return np.asarray(differ | unsure, dtype=np.bool_)


def _dilated(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    wide = grown.copy()
    wide[:, 1:] |= grown[:, :-1]
    wide[:, :-1] |= grown[:, 1:]
    return wide


def _halved(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice as many squares along each side, the new points interpolated linearly."""
    size = 2 * len(found) - 1
    out = np.empty((size, size, found.shape[2]))
    out[::2, ::2] = found
    out[1::2, ::2] = (found[:-1] + found[1:]) / 2
    out[:, 1::2] = (out[:, :-1:2] + out[:, 2::2]) / 2
    return out
