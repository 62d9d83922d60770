"""The mean of curves over replicates, at the same steps, with its interval; in one pass over the curves.

Shapes: R replicates, N steps of one curve, S steps of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.analysis.estimate import LEVEL, Estimate, Floats, Integers, tails


@dataclass(frozen=True, kw_only=True, eq=False)
class Means:
    """Means of S quantities over replicates, and the t interval of each."""

    mean: Floats
    """(S,) of the finite values; NaN where there are none."""
    low: Floats
    """(S,) -inf for a single value, NaN without any."""
    high: Floats
    count: Integers
    """(S,) replicates with a finite value."""

    def estimate(self, place: int, *, level: float = LEVEL) -> Estimate:
        """The mean at one place, whose interval was computed at this level."""
        value, low, high = (float(part[place]) for part in (self.mean, self.low, self.high))
        return Estimate(value=value, low=low, high=high, level=level)


class RunningMeans:
    """Collects rows of S values one at a time, and keeps as many numbers whatever their number (Welford 1962).

    Values that are not finite are left out.
    """

    def __init__(self, points: int) -> None:
        self._count = np.zeros(points, dtype=np.int64)
        self._mean, self._squares = np.zeros(points), np.zeros(points)

    def add(self, row: Floats) -> None:
        """Add a replicate: (S,) values."""
        finite = np.isfinite(row)
        value = np.where(finite, row, 0.0)
        self._count += finite
        off = np.where(finite, value - self._mean, 0.0)
        self._mean += off / np.maximum(self._count, 1)
        self._squares += off * np.where(finite, value - self._mean, 0.0)

    def means(self, *, level: float = LEVEL) -> Means:
        """The means so far, with intervals by Student's t distribution."""
        from scipy.special import stdtrit

        count, some = self._count.copy(), self._count > 0
        mean = np.where(some, self._mean, np.nan)
        error = np.sqrt(self._squares / np.maximum(count - 1, 1) / np.maximum(count, 1))
        half = np.where(count > 1, stdtrit(np.maximum(count - 1, 1), tails(level)[1]) * error, np.inf)
        with np.errstate(invalid="ignore"):
            return Means(mean=mean, low=mean - half, high=mean + half, count=count)


def means_of(values: Any, *, level: float = LEVEL) -> Means:
    """Means over the rows of (R, S) values, see `RunningMeans`."""
    array = np.asarray(values, dtype=np.float64)
    running = RunningMeans(array.shape[1])
    for row in array:
        running.add(row)
    return running.means(level=level)


def at_steps(step: Integers, value: Floats, grid: Integers) -> Floats:
    """(S,) a curve at the steps of a grid: linear in log(1 + step) between its (N,) steps, NaN outside of them.

    A recorded step has its recorded value, infinities included. `step` and `grid` increase.
    """
    if not len(step):
        return np.full(len(grid), np.nan)
    right = np.minimum(np.searchsorted(step, grid), len(step) - 1)
    exact = step[right] == grid
    left = np.where(exact, right, np.maximum(right - 1, 0))
    position, wanted = np.log1p(step.astype(np.float64)), np.log1p(grid.astype(np.float64))
    width = np.where(right > left, position[right] - position[left], 1.0)
    with np.errstate(invalid="ignore"):
        between = value[left] + (wanted - position[left]) / width * (value[right] - value[left])
    inside = (grid >= step[0]) & (grid <= step[-1])
    return np.where(exact, value[right], np.where(inside, between, np.nan))


def grid_of_steps(steps: Any, *, most: int) -> Integers:
    """At most `most` of the given steps: all of them, or about evenly spaced in log(1 + step), with both ends.

    Args:
        steps: steps of several curves, in any order, with repeats.
        most: at least 2.
    """
    distinct = np.unique(np.asarray(steps, dtype=np.int64))
    if len(distinct) <= most:
        return distinct
    # Of neighbouring recorded steps the nearest is taken, so that most curves need no interpolation.
    wanted = np.expm1(np.linspace(np.log1p(distinct[0]), np.log1p(distinct[-1]), most))
    right = np.clip(np.searchsorted(distinct, wanted), 1, len(distinct) - 1)
    nearer = np.where(wanted - distinct[right - 1] < distinct[right] - wanted, right - 1, right)
    return np.asarray(distinct[np.unique(nearer)], dtype=np.int64)
