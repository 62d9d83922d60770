"""Reductions of a curve to a number, shared by the jobs. All work on (N,) arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jobs.job import Censored

Values = NDArray[np.float64]
Steps = NDArray[np.int64]


def first_at_least(step: Steps, value: Values, level: float) -> float | Censored:
    """The first step at which the curve is at or above `level`, censored at the last step."""
    return _first(step, value >= level)


def first_at_most(step: Steps, value: Values, level: float) -> float | Censored:
    """The first step at which the curve is at or below `level`, censored at the last step."""
    return _first(step, value <= level)


def _first(step: Steps, hit: NDArray[np.bool_]) -> float | Censored:
    where = np.flatnonzero(hit)
    if len(where):
        return float(step[where[0]])
    return Censored(float(step[-1]) if len(step) else 0.0)


def diverged(values: Values) -> bool:
    """Whether the curve ever leaves the finite numbers."""
    return not bool(np.isfinite(values).all())
