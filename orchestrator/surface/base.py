"""What a search believes about a phase diagram between its trials, and how it chooses the next trials.

Shapes: n evaluated trials, d searched axes, K classes, q query points. Positions are in the unit box: every axis runs
from 0 to 1 on its own scale (a logarithmic axis in its logarithm). The search, the map and the stopping rule share
these objects. Nothing here knows Optuna, sweep files or records.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Generic, TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""(q, d) positions in the unit box."""

BAND = 0.9
"""Belief interval of the band: outside the band the leading class has at least 95% of the belief."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialEvidence:
    """What one trial that has ended says: a row of `Evidence`."""

    label: int = -1
    value: float = float("nan")
    censored: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """The trials that have ended, in the order in which they were told. Equal settings are replicates."""

    x: Points
    """(n, d)"""
    label: NDArray[np.int64]
    """(n,) index of the class that the trial showed; -1 where it showed none."""
    value: NDArray[np.float64]
    """(n,) the metric whose level or ridge is searched for; NaN where there is none (a diverged trial)."""
    censored: NDArray[np.bool_]
    """(n,) whether `value` is only a lower bound: the trial did not reach it within its horizon."""

    @classmethod
    def of(cls, x: Points, trials: Sequence[TrialEvidence]) -> Evidence:
        """The evidence of trials at positions x (n, d)."""
        return cls(
            x=x,
            label=np.array([trial.label for trial in trials], dtype=np.int64),
            value=np.array([trial.value for trial in trials], dtype=np.float64),
            censored=np.array([trial.censored for trial in trials], dtype=np.bool_),
        )

    def __len__(self) -> int:
        return len(self.x)


class Surface(ABC):
    """A belief over the unit box, fitted to evidence. Immutable, and independent of the order of the evidence."""

    dimensions: int
    """d"""

    @abstractmethod
    def uncertain_area(self) -> float:
        """The share of the box that lies in the band; for a ridge, the mean width of the peak's interval."""


class ClassSurface(Surface):
    """The most frequent class over replicates at each point, and how certain it is.

    Once two classes were shown, the belief in classes that no trial has shown is 0 everywhere. With one class only, its
    belief is below 1 away from the trials, and the rest is shared by the other classes.
    """

    classes: int
    """K"""
    area_points_log2: ClassVar[int] = 13
    """The uncertain area is measured with 2 to this power points."""

    @abstractmethod
    def belief(self, x: Points) -> NDArray[np.float64]:
        """(q, K) the probability that class k is the one shown by most replicates at x; rows sum to 1."""

    def label(self, x: Points) -> NDArray[np.int64]:
        """(q,) the class with the largest belief."""
        return np.asarray(self.belief(x).argmax(axis=1), dtype=np.int64)

    def in_band(self, x: Points) -> NDArray[np.bool_]:
        """(q,) whether the leading class has less than 95% of the belief."""
        return np.asarray(self.belief(x).max(axis=1) < (1 + BAND) / 2, dtype=np.bool_)

    def uncertain_area(self) -> float:
        return self._uncertain_area

    @cached_property
    def _uncertain_area(self) -> float:
        return float(self.in_band(sobol(self.dimensions, self.area_points_log2)).mean())

    @abstractmethod
    def noise(self) -> float:
        """The share of replicates that show another label than the most frequent one, away from the boundary."""


class RidgeSurface(Surface):
    """Where a metric peaks along one axis, as a function of the others."""

    along: int
    """The axis (0..d-1) along which the metric peaks."""

    @abstractmethod
    def mean(self, x: Points) -> NDArray[np.float64]:
        """(q,) the expected metric, replicates averaged."""

    @abstractmethod
    def peak(self, others: Points) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The peak's position for (q, d-1) positions on the other axes: median, 5% and 95% quantile, each (q,)."""


S = TypeVar("S", bound=Surface)
Snap = Callable[[Points], Points]
"""Moves positions to the nearest ones that a trial can have (whole numbers, the values of a grid)."""


class Surrogate(ABC, Generic[S]):
    """How evidence becomes a belief, and which trials are most informative. Holds no state."""

    start: int = 64
    """Trials at positions of a scrambled Sobol sequence before the belief is used."""

    @abstractmethod
    def fit(self, evidence: Evidence, *, previous: S | None = None) -> S:
        """The belief given this evidence. `previous` may speed up the fit; it changes the result within tolerance."""

    @abstractmethod
    def suggest(
        self, surface: S, evidence: Evidence, *, pending: Points, count: int, snap: Snap, rng: Generator
    ) -> Points:
        """(m, d) positions to try next, m <= `count`, best first.

        Every position has been through `snap`. Positions in `evidence` and in `pending` (trials that have not ended)
        count as tried. A tried position is suggested again only where another replicate of it is more informative than
        a new setting. Fewer than `count` are returned only where `snap` leaves nothing untried.
        """


def sobol(dimensions: int, log2: int, rng: Generator | None = None) -> Points:
    """(2^log2, dimensions) points of a scrambled Sobol sequence; without `rng`, the same ones at every call."""
    from scipy.stats import qmc  # slow to import, and not needed to check a sweep file

    rng = np.random.default_rng(0) if rng is None else rng
    return np.asarray(qmc.Sobol(dimensions, rng=rng).random_base2(log2), dtype=np.float64)


def lattice(points: int, dimensions: int) -> Points:
    """(points, dimensions) positions that fill the unit box evenly, the same ones at every call.

    The R-sequence of M. Roberts, "The unreasonable effectiveness of quasirandom sequences" (2018): its steps are the
    powers of 1/r, where r^(d+1) = r + 1.
    """
    root = 2.0
    for _ in range(60):
        root = (1 + root) ** (1 / (dimensions + 1))
    steps = root ** -np.arange(1, dimensions + 1, dtype=np.float64)
    return np.asarray((0.5 + np.arange(1, points + 1)[:, None] * steps) % 1, dtype=np.float64)
