"""Which trials tell most about where a peak is.

Functions drawn from the belief, and the positions of their peaks, are an ensemble: the covariance between what a trial
would show and where the peaks are says by how much the trial would shrink the variance of their positions, summed over
the other axes. After each choice the ensemble is conditioned on it, whatever its outcome (the linear update of the
ensemble Kalman filter; Evensen 2003), so that a batch shares the work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from orchestrator.surface.base import Points, Snap
from orchestrator.surface.kernel import Floats
from orchestrator.surface.level_placement import untried

_POOL: Final = 1024
_COLUMNS: Final = 48
_VOIDS: Final = 0.125
"""Share of a batch that goes where the metric itself is least known: a second peak is found there, if there is one."""
_AGAIN: Final = 1.25
"""A replicate of a position must tell this much more than the best new one."""


@dataclass(kw_only=True, eq=False)
class Ensemble:
    """Draws of the belief; conditioned in place."""

    values: Floats
    """(q, draws) the function at the candidates."""
    positions: Floats
    """(columns, draws) positions of the peaks."""
    noise: Floats
    """(q,) standard deviation of one trial at each candidate."""

    def gain(self) -> Floats:
        """(q,) by how much a trial would shrink the summed variance of the positions."""
        values, positions, draws = self._centred()
        spread = values.var(axis=1)
        shared = (values @ positions.T / draws) ** 2
        # What uncorrelated draws show by chance is no gain.
        chance = spread[:, None] * positions.var(axis=1)[None, :] * (2.0 / draws)
        return np.asarray(np.maximum(shared - chance, 0.0).sum(axis=1) / (spread + self.noise**2 + 1e-12))

    def ignorance(self) -> Floats:
        """(q,) by how much a trial would shrink the variance of the function where it is."""
        spread = self.values.var(axis=1)
        return np.asarray(spread**2 / (spread + self.noise**2 + 1e-12))

    def condition(self, candidate: int, rng: np.random.Generator) -> None:
        """Take a trial there as seen."""
        values, positions, draws = self._centred()
        seen = values[candidate] + self.noise[candidate] * rng.standard_normal(draws)
        seen -= seen.mean()
        total = float(seen @ seen) + 1e-12
        self.values -= np.outer(values @ seen / total, seen)
        self.positions -= np.outer(positions @ seen / total, seen)

    def _centred(self) -> tuple[Floats, Floats, int]:
        values = self.values - self.values.mean(axis=1, keepdims=True)
        positions = self.positions - self.positions.mean(axis=1, keepdims=True)
        return values, positions, values.shape[1]


def curves_of(other: NDArray[np.float64], along: int, steps: int) -> Points:
    """(steps, d) points along the axis from 0 to 1, at one position (d-1,) on the other axes."""
    return np.insert(np.tile(other, (steps, 1)), along, np.linspace(0, 1, steps), axis=1)


def place(
    ensemble: Callable[[Points, Points], Ensemble | None],
    along: int,
    *,
    tried: Points,
    pending: Points,
    count: int,
    snap: Snap,
    rng: np.random.Generator,
) -> Points:
    """(m, d) positions, m <= count: greedily those that tell most of the peak, each eighth most of the metric.

    `ensemble` draws the belief at candidates and at columns, positions on the other axes; None where nothing is known
    yet: then the positions fill the box.
    """
    d = tried.shape[1]
    known = np.concatenate([tried, pending]) if len(pending) else tried
    pool = untried(lambda n: rng.random((n, d)), known, snap, least=count, first=_POOL)
    if not len(pool):
        return np.empty((0, d))
    new = len(pool)
    # Candidates: new positions, then replicates, then those under way, which are not chosen but conditioned on.
    settings = np.unique(tried, axis=0)
    again = settings[rng.permutation(len(settings))[: _POOL // 4]]
    x = np.concatenate([pool, again, pending]) if len(pending) else np.concatenate([pool, again])
    columns = np.unique(np.delete(snap(rng.random((_COLUMNS, d))), along, axis=1), axis=0)
    believed = ensemble(x, columns)
    if believed is None:
        return _spread(pool, known, count)
    for row in range(new + len(again), len(x)):
        believed.condition(row, rng)
    chosen: list[int] = []
    taken = np.zeros(len(x), dtype=bool)
    taken[new + len(again) :] = True
    while len(chosen) < count and not taken[:new].all():
        turn = len(chosen)
        void = int((turn + 1) * _VOIDS) > int(turn * _VOIDS)
        score = believed.ignorance() if void else believed.gain()
        score[taken] = -1.0
        best = int(score[:new].argmax())
        if not void and len(again):
            replicate = new + int(score[new : new + len(again)].argmax())
            if score[replicate] > _AGAIN * score[best]:
                best = replicate
        chosen.append(best)
        taken[best] = best < new
        believed.condition(best, rng)
    return x[chosen]


def _spread(pool: Points, known: Points, count: int) -> Points:
    """The positions of the pool that are furthest from each other and from the known ones."""
    distance = cKDTree(known).query(pool)[0] if len(known) else np.full(len(pool), 2.0)
    chosen: list[int] = []
    for _ in range(min(count, len(pool))):
        best = int(distance.argmax())
        chosen.append(best)
        distance = np.minimum(distance, np.linalg.norm(pool - pool[best], axis=1))
    return pool[chosen]
