"""The surrogate of a phase target: labels of any number of classes, and the trials that locate their boundaries.

The acquisition function is P^4 dist^d: P the probability that the two leading classes are swapped, dist the distance to
every trial that has ended, is pending or was just chosen, in d dimensions. It is multiplied by AGREEMENT where the six
nearest labels agree. Half of a batch is chosen among positions spread over the whole box, which finds islands and the
ends of tongues where the belief is wrong. The other half is chosen among positions generated ever more densely around
the boundary, so that late trials lie as close to it as it is known. On a grid, a tried setting may get another
replicate (see `Distances`).

No large part of the box stays unexplored: as long as an empty ball holds more than 1 / (6 n^(1/3)) of it, n the number
of trials, its centre is tried, by up to half of a batch. A ball-shaped island of that share is therefore found: 4% of
the box after 64 trials, 2.6% after 256, 2.1% after 512.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gamma, pi

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from orchestrator.surface.base import Evidence, Points, Snap, Surrogate, sobol
from orchestrator.surface.classifier import GpClassifier, fit_classifier
from orchestrator.surface.kernel import Floats
from orchestrator.surface.placement import POWER, Distances, farthest, is_grid, swap_probability

__all__ = ["PhaseSurrogate", "PhaseTarget", "fit_classifier"]

AGREEMENT = 0.02
"""Factor on positions whose nearest labels agree."""
NEIGHBOURS = 6
WIDE, COARSE = 13, 11
"""Base-two logarithms of the number of positions over the box, and of those that the denser ones start from."""
ROUNDS, DENSE = 3, 1000
"""How often positions are made denser around the boundary, and about how many each time."""
VOID = 1 / 6
"""The share of the box that an empty ball may hold, times the cube root of the number of trials."""
KEPT = 0.1
"""Share of the positions closest to the boundary, around which the next ones are generated."""


@dataclass(frozen=True, kw_only=True)
class PhaseSurrogate(Surrogate[GpClassifier]):
    """The boundaries between the classes that the trials' labels show."""

    classes: int
    """K: labels run from 0 to K - 1."""
    start: int = 64
    replicates: int = 1
    """How many trials a setting of a grid may have."""

    def fit(self, evidence: Evidence, *, previous: GpClassifier | None = None) -> GpClassifier:
        """The belief given this evidence; trials labelled -1 are ignored."""
        return fit_classifier(evidence.x, evidence.label, classes=self.classes, previous=previous)

    def suggest(
        self, surface: GpClassifier, evidence: Evidence, *, pending: Points, count: int, snap: Snap, rng: Generator
    ) -> Points:
        tried = np.concatenate([evidence.x, pending])
        known = len(tried)
        d = tried.shape[1]
        if len(surface.data.shown) > 1:
            tried = np.concatenate([tried, _void_centres(tried, most=-(-count // 2), snap=snap, rng=rng)])
            left = count - (len(tried) - known)
            wide, dense = snap(sobol(d, WIDE, rng)), snap(_near_boundary(surface, d, rng))
            replicates = self.replicates if is_grid(wide) else 1
            for pool, most in ((wide, left - left // 2), (dense, left // 2)):
                pool = np.unique(pool, axis=0)
                worth = _worth(surface, pool, evidence)
                more = Distances(pool, tried, replicates=replicates).greedy(worth, most)
                tried = np.concatenate([tried, more])
        for log2 in (12, 14, 16):
            left = count - (len(tried) - known)
            if left > 0:
                pool = np.unique(snap(sobol(d, log2, rng)), axis=0)
                tried = np.concatenate([tried, farthest(pool, tried, left)])
        return tried[known:]


PhaseTarget = PhaseSurrogate
"""The name under which users of `PhaseBoundarySampler` import it."""


def _void_centres(tried: Points, *, most: int, snap: Snap, rng: Generator) -> Points:
    """The centres of the empty balls that are too large for so many trials, at most `most`, the largest first."""
    d = tried.shape[1]
    pool = np.unique(snap(sobol(d, COARSE, rng)), axis=0)
    away: Floats = cKDTree(tried).query(pool)[0]
    share = pi ** (d / 2) / gamma(d / 2 + 1)
    picks: list[int] = []
    while len(picks) < most:
        reach = away[:, None]
        inside = np.minimum(pool + reach, 1.0) - np.maximum(pool - reach, 0.0)
        # The part of a ball that lies inside the box, estimated by that of its bounding box.
        volume = share * np.prod(inside / 2, axis=1)
        pick = int(volume.argmax())
        if volume[pick] <= VOID * (len(tried) + len(picks)) ** (-1 / 3):
            break
        picks.append(pick)
        away = np.minimum(away, np.linalg.norm(pool - pool[pick], axis=1))
    return pool[picks]


def _near_boundary(surface: GpClassifier, d: int, rng: Generator) -> Points:
    """Positions around the boundary: each round perturbs the least certain ones by less."""
    reach = 2.0 ** (-COARSE / d)
    points = sobol(d, COARSE, rng)
    rounds = []
    for _ in range(ROUNDS):
        seeds = points[by_certainty(surface, points)[: max(200, int(KEPT * len(points)))]]
        each = -(-DENSE // len(seeds))
        moves = rng.uniform(-reach, reach, size=(len(seeds) * each, d))
        points = np.clip(np.repeat(seeds, each, axis=0) + moves, 0.0, 1.0)
        rounds.append(points)
        reach *= each ** (-1 / d)
    return np.concatenate(rounds)


def by_certainty(surface: GpClassifier, points: Points) -> NDArray[np.int64]:
    """Indices of (q, d) points, ordered by the latent margin of the leading class in standard deviations."""
    mean, variance = surface.latent_moments(points)
    sd = np.sqrt(variance)
    if mean.shape[1] == 1:
        margin = np.abs(mean[:, 0]) / sd[:, 0]
    else:
        each = np.arange(len(mean))
        first, second = np.argsort(-mean, axis=1, kind="stable")[:, :2].T
        margin = (mean[each, first] - mean[each, second]) / (sd[each, first] + sd[each, second])
    return np.argsort(margin, kind="stable")


def _worth(surface: GpClassifier, pool: Points, evidence: Evidence) -> Floats:
    """The acquisition function at a pool, without its distance factor."""
    known = evidence.label >= 0
    near = cKDTree(evidence.x[known]).query(pool, k=min(NEIGHBOURS, int(known.sum())))[1].reshape(len(pool), -1)
    labels = evidence.label[known][near]
    agree = (labels == labels[:, :1]).all(axis=1)
    return np.asarray(swap_probability(surface, pool) ** POWER * np.where(agree, AGREEMENT, 1.0))
