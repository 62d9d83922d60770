"""Choosing positions for the next trials: candidates, distances to the trials so far, and greedy selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from orchestrator.surface.base import ClassSurface, Points, Snap
from orchestrator.surface.kernel import Floats

POWER: Final = 4
"""Exponent of the probability that the two leading classes are swapped, in the acquisition function."""
_MOST_DRAWS: Final = 5
_SAME: Final = 1e-9
"""Positions this close count as one."""


def is_grid(snapped: Points) -> bool:
    """Whether a snapped sample of the box shows a grid: different positions became equal ones.

    Only on a grid is a setting worth another trial: elsewhere a new setting beside it is as informative. The sample
    must be drawn inside the box: positions that are clipped to its walls coincide there.
    """
    return len(np.unique(snapped, axis=0)) < len(snapped)


class Distances:
    """Distances of (q, d) distinct positions to the trials, updated as positions are taken.

    On a grid the settings near a boundary are soon used up. Another replicate of a setting counts as a new position
    that shares the setting's cell with the earlier ones: the k-th trial of a setting lies spacing / k^(1/d) away, where
    spacing is the distance to the nearest other setting, so that distance^d is its share of the cell. So replicates go
    to settings whose class is uncertain, before new settings far from any boundary.

    Args:
        pool: Positions that may be taken.
        tried: (t, d) positions of trials that have ended, are pending or were just chosen, replicates included.
        replicates: How many trials a position may have.
    """

    def __init__(self, pool: Points, tried: Points, *, replicates: int = 1) -> None:
        self._pool, self._replicates = pool, replicates
        q, d = pool.shape
        self.away: NDArray[np.float64]
        """(q,) distance of a new trial at each position, 0 where the position may not be taken."""
        self.away = cKDTree(tried).query(pool)[0] if len(tried) else np.full(q, np.sqrt(d))
        self._times = np.zeros(q, dtype=np.int64)
        self._spacing = np.zeros(q)
        same = np.flatnonzero(self.away <= _SAME)
        if replicates > 1 and q > 1:
            self._spacing = cKDTree(pool).query(pool, k=2)[0][:, 1]
            if len(same):
                self._times[same] = cKDTree(tried).query_ball_point(pool[same], _SAME, return_length=True)
        else:
            self._times[same] = 1
        self._update_tried()

    def take(self, index: int) -> None:
        """Add a trial at this position of the pool."""
        np.minimum(self.away, np.linalg.norm(self._pool - self._pool[index], axis=1), out=self.away)
        self._times[index] += 1
        self._update_tried()

    def _update_tried(self) -> None:
        used = np.flatnonzero(self._times)
        times = self._times[used]
        share = self._spacing[used] / (times + 1.0) ** (1.0 / self._pool.shape[1])
        self.away[used] = np.where(times < self._replicates, share, 0.0)

    def greedy(self, worth: Floats, count: int, *, void_share: float = 0.0) -> Points:
        """Take up to `count` positions, each the one with the largest worth * distance^d.

        A share `void_share` of them is chosen by distance alone.
        """
        picks: list[int] = []
        for turn in range(count):
            void = int((turn + 1) * void_share) > int(turn * void_share)
            score = self.away if void else worth * self.away ** self._pool.shape[1]
            pick = int(score.argmax())
            if not score[pick] > 0:
                break
            picks.append(pick)
            self.take(pick)
        return self._pool[picks]


def swap_probability(surface: ClassSurface, x: Points) -> Floats:
    """(q,) the probability that of the two leading classes the second is the true one: 0 is certain, 1/2 is not."""
    second, first = np.sort(surface.belief(x), axis=1)[:, -2:].T
    return np.asarray(second / np.maximum(first + second, 1e-300))


def farthest(pool: Points, tried: Points, count: int) -> Points:
    """Up to `count` positions of the pool, each as far as possible from those tried and those taken before it."""
    away: Floats = cKDTree(tried).query(pool)[0] if len(tried) else np.full(len(pool), np.inf)
    picks: list[int] = []
    while len(picks) < count:
        pick = int(away.argmax())
        if not away[pick] > 0:
            break
        picks.append(pick)
        away = np.minimum(away, np.linalg.norm(pool - pool[pick], axis=1))
    return pool[picks]


def untried(draw: Callable[[int], Points], tried: Points, snap: Snap, *, least: int, first: int) -> Points:
    """(m, d) distinct positions that `snap` makes of what `draw` returns, without those tried.

    Where fewer than `least` are left of `first` drawn points, more are drawn, so that the last cells of a nearly used
    up grid are found too.
    """
    pool = np.empty((0, tried.shape[1]))
    for turn in range(_MOST_DRAWS):
        snapped = np.unique(np.concatenate([pool, snap(draw(first << turn))]), axis=0)
        pool = snapped[cKDTree(tried).query(snapped)[0] > _SAME] if len(tried) else snapped
        if len(pool) >= least:
            break
    return pool
