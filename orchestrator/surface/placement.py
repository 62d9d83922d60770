"""Where the next trials go: most into the band, by what they are expected to settle, and some into the largest voids.

The band is searched on points made for it, ever denser as it narrows, so that a pick is as fine as the belief. Voids
are where an island can hide that the belief knows nothing of: their share of a batch falls as trials fill the box.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree
from scipy.stats import qmc

from orchestrator.surface.base import Points, Snap
from orchestrator.surface.classifier import GpClasses, Labels
from orchestrator.surface.kernel import Floats
from orchestrator.surface.lookahead import LookAhead, leading

_COARSE = 11
"""Logarithm to base two of the points that look for the band."""
_WITHIN = 1.3
"""Gaps, in standard deviations, that count as the band here; see `lookahead.SHARPER`."""
_REFERENCE, _CANDIDATES = 600, 500


def void_share(trials: int) -> float:
    """The share of a batch that goes into voids: 12% after 64 trials, 7% after 512."""
    return 0.06 + 0.06 * min(1.0, 64 / max(trials, 1))


def band(surface: GpClasses, snap: Snap, rng: np.random.Generator, want: int = _REFERENCE) -> Points:
    """(<= want, d) positions of nearly even density where the two leading classes may be swapped."""
    d = surface.dimensions
    reach = 2.0 ** (-_COARSE / d)
    points: Points = snap(qmc.Sobol(d, rng=rng).random_base2(_COARSE))
    for finer in range(3):
        _, gap, deviation = leading(*surface.latent_moments(points))
        apart = gap / deviation
        inside = points[apart < _WITHIN]
        if len(inside) >= want or finer == 2:
            break
        # Points beside the band are kept as seeds, or a band between two of them would be lost.
        seeds = points[apart < max(1.6 * _WITHIN, float(np.partition(apart, 8)[8]) + 1e-9)]
        seeds = seeds[rng.permutation(len(seeds))[:want]]
        each = int(np.ceil(np.clip(2.0 * want / max(len(inside), 1), 2, 4000 / len(seeds))))
        moves = rng.uniform(-reach, reach, size=(len(seeds) * each, d))
        points = np.concatenate([seeds, snap(np.clip(np.repeat(seeds, each, axis=0) + moves, 0.0, 1.0))])
        reach *= each ** (-1 / d)
    inside = np.unique(inside, axis=0)
    return np.asarray(inside[rng.permutation(len(inside))[:want]])


def place(
    surface: GpClasses,
    x: Points,
    label: Labels,
    *,
    pending: Points,
    count: int,
    snap: Snap,
    rng: np.random.Generator,
) -> Points:
    """(<= count, d) positions to try next: see `Target.suggest`."""
    found: list[Points] = []
    if len(surface.data.seen) > 1:
        found.append(_check(surface, x, label, pending=pending, count=max(1, count // 6), snap=snap, rng=rng)[:count])
        pending = np.concatenate([pending, found[0]])
        voids = int(void_share(len(x)) * count + rng.random())
        left = count - voids - len(found[0])
        found.append(_settle(surface, x, pending=pending, count=left, snap=snap, rng=rng))
        pending = np.concatenate([pending, found[1]])
    tried = np.concatenate([x, pending])
    missing = count - sum(len(part) for part in found)
    found.append(_fill(tried, count=missing, snap=snap, rng=rng))
    return np.concatenate(found)


def _settle(
    surface: GpClasses, x: Points, *, pending: Points, count: int, snap: Snap, rng: np.random.Generator
) -> Points:
    """The trials that are expected to shrink the area that the map gets wrong most."""
    points = band(surface, snap, rng)
    if len(points) == 0 or count <= 0:
        return np.empty((0, x.shape[1]))
    tried = np.concatenate([x, pending])
    fresh = ~_same(points, tried)
    candidates = points[fresh][:_CANDIDATES]
    points = np.concatenate([candidates, points[fresh][_CANDIDATES:], points[~fresh]])
    ahead = LookAhead(surface, points, len(candidates), pending)
    open_ = np.ones(len(candidates), dtype=bool)
    chosen: list[int] = []
    for _ in range(min(count, len(candidates))):
        gains = np.where(open_, ahead.gains(), -np.inf)
        pick = int(gains.argmax())
        if not gains[pick] > 0:
            break
        open_[pick] = False
        chosen.append(pick)
        ahead.pick(pick)
    return candidates[chosen]


def _check(
    surface: GpClasses, x: Points, label: Labels, *, pending: Points, count: int, snap: Snap, rng: np.random.Generator
) -> Points:
    """Beside lone trials whose label the belief takes for noise: an odd label, or the first trial on an island?

    A trial is lone while no other lies within a quarter of the mean spacing. The check lies within an eighth, or, where
    positions are too coarse for that, is a replicate.
    """
    known = np.flatnonzero(label >= 0)
    odd = x[known[surface.label(x[known]) != label[known]]]
    tried = np.concatenate([x, pending])
    if len(odd) == 0 or len(tried) < 3 or count <= 0:
        return np.empty((0, x.shape[1]))
    spacing = len(tried) ** (-1 / x.shape[1])
    alone = cKDTree(tried).query(odd, k=2)[0][:, 1]
    order = np.argsort(-alone, kind="stable")
    odd = odd[order][alone[order] > spacing / 4][:count]
    moves = rng.standard_normal(odd.shape)
    moves *= spacing / 8 / np.linalg.norm(moves, axis=1, keepdims=True)
    return np.unique(snap(np.clip(odd + moves, 0.0, 1.0)), axis=0)


def _fill(tried: Points, *, count: int, snap: Snap, rng: np.random.Generator) -> Points:
    """The centres of the largest voids: each position is as far as can be from all those tried and those before it."""
    d = tried.shape[1]
    chosen = np.empty((0, d))
    for size in (12, 14, 16):
        if len(chosen) >= count:
            break
        pool = np.unique(snap(qmc.Sobol(d, rng=rng).random_base2(size)), axis=0)
        known = np.concatenate([tried, chosen])
        away: Floats = cKDTree(known).query(pool)[0] if len(known) else np.full(len(pool), np.inf)
        picks: list[int] = []
        while len(chosen) + len(picks) < count:
            pick = int(away.argmax())
            if not away[pick] > 0:
                break
            picks.append(pick)
            away = np.minimum(away, np.linalg.norm(pool - pool[pick], axis=1))
        chosen = np.concatenate([chosen, pool[picks]])
    return chosen


def _same(points: Points, others: Points) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(q,) whether a position is among the others."""
    if len(points) == 0 or len(others) == 0:
        return np.zeros(len(points), dtype=bool)
    return np.asarray(cKDTree(others).query(points)[0] == 0.0)
