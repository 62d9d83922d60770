"""A belief on a fine raster of a plane: exact near a boundary and in its band, interpolated where it is certain."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from orchestrator.surface.base import BAND, ClassSurface, Points

Scalar = TypeVar("Scalar", bound=np.generic)
Belief = Callable[[Points], NDArray[np.float64]]
"""(q, 2) positions in the plane -> (q, K) beliefs."""

COARSE = 50
"""Squares along each side of the first raster."""
HALVINGS = 3
"""How often they are halved: 400 squares along each side at the end."""
CHUNK = 8192
"""Positions per call of a classifier: it may need memory in proportion to positions times trials."""
SURE = (1 + BAND) / 2
_CERTAIN = 0.98
"""A square is not refined where all corners agree on the leading class with at least this belief."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Raster:
    """A belief at (N, N) points of the unit square, its edges included."""

    belief: NDArray[np.float64]
    """(N, N, K), x first."""
    asked: int
    """Positions at which the classifier was evaluated."""

    @property
    def points(self) -> NDArray[np.float64]:
        """(N,) the positions along either axis."""
        return np.linspace(0, 1, len(self.belief))

    @property
    def label(self) -> NDArray[np.int64]:
        """(N, N) the leading class."""
        return leading(self.belief)

    def at(self, x: Points) -> NDArray[np.float64]:
        """(q, K) the belief at (q, 2) positions, interpolated linearly between the points."""
        squares = len(self.belief) - 1
        place = np.clip(x, 0, 1) * squares
        corner = np.minimum(place.astype(np.int64), squares - 1)
        (i, j), (u, v) = corner.T, (place - corner).T[:, :, None]
        low = (1 - v) * self.belief[i, j] + v * self.belief[i, j + 1]
        high = (1 - v) * self.belief[i + 1, j] + v * self.belief[i + 1, j + 1]
        return np.asarray((1 - u) * low + u * high, dtype=np.float64)

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


def in_chunks(ask: Callable[[Points], NDArray[Scalar]], at: Points) -> NDArray[Scalar]:
    """`ask(at)`, a bounded number of positions at a time."""
    if len(at) <= CHUNK:
        return ask(at)
    return np.concatenate([ask(at[start : start + CHUNK]) for start in range(0, len(at), CHUNK)])


def rasterise(
    belief: Belief, hints: Points, labels: NDArray[np.int64], *, coarse: int = COARSE, halvings: int = HALVINGS
) -> Raster:
    """Evaluate a belief on a raster of `coarse * 2**halvings` squares along each side.

    Every square that could hold a boundary, the edge of a band or a trial whose label is not the map's is evaluated
    down to the last halving, with the squares beside it. Elsewhere the raster is interpolated between corners that
    agree with a belief of 98% or more. An island smaller than a coarse square is missed unless a trial lies in it.

    Args:
        belief: of the plane.
        hints: (n, 2) positions of trials in the plane.
        labels: (n,) their classes.
        coarse: squares along a side to begin with.
        halvings: of every side.
    """
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, coarse + 1)] * 2, indexing="ij"), axis=-1)
    raster = belief(grid.reshape(-1, 2)).reshape(coarse + 1, coarse + 1, -1)
    asked = (coarse + 1) ** 2
    for level in range(halvings):
        squares = len(raster) - 1
        refined = _uncertain(raster, certain=_CERTAIN if level == 0 else SURE)
        if len(hints):
            i, j = np.clip((hints * squares).astype(np.int64), 0, squares - 1).T
            odd = raster[i, j].argmax(axis=1) != labels
            refined[i[odd], j[odd]] = True
        raster = _halved(raster)
        new = np.zeros(raster.shape[:2], dtype=np.bool_)
        squares_i, squares_j = np.nonzero(binary_dilation(refined, np.ones((3, 3))))
        for di, dj in itertools.product(range(3), repeat=2):
            if di % 2 or dj % 2:  # the corners are known already
                new[2 * squares_i + di, 2 * squares_j + dj] = True
        at = np.argwhere(new)
        if len(at):
            raster[new] = belief(at / (2 * squares))
        asked += len(at)
    return Raster(belief=raster, asked=asked)


def _uncertain(raster: NDArray[np.float64], *, certain: float) -> NDArray[np.bool_]:
    """(S, S) squares whose corners disagree in their label, or lie on both sides of certainty."""
    label, lead = _corners(leading(raster)), _corners(raster.max(axis=2))
    differ = label.min(axis=0) != label.max(axis=0)
    low, high = lead.min(axis=0), lead.max(axis=0)
    unsure = low < certain if certain > SURE else (low < certain) & (high >= certain)
    return np.asarray(differ | unsure, dtype=np.bool_)


def _corners(values: NDArray[Any]) -> NDArray[Any]:
    """(4, S, S) the corners of every square."""
    return np.stack([values[:-1, :-1], values[1:, :-1], values[1:, 1:], values[:-1, 1:]])


def _halved(raster: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice as many squares along each side, the new points interpolated linearly."""
    size = 2 * len(raster) - 1
    fine = np.empty((size, size, raster.shape[2]))
    fine[::2, ::2] = raster
    fine[1::2, ::2] = (raster[:-1] + raster[1:]) / 2
    fine[:, 1::2] = (fine[:, :-1:2] + fine[:, 2::2]) / 2
    return fine
