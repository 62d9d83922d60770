"""Mean, median and their standard errors over the replicates of each setting: what a prediction is held against.

Shapes: N trials, S settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.phases.table import ObservationColumn

Floats = NDArray[np.float64]

HEAVY_SHARE = 0.5
"""Share of the squared spread from which on one replicate rules it: the mean's standard error means little then."""
HEAVY_FROM = 16
"""Replicates from which on that can be told (of 16 normal ones, one in a hundred sets would look so)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread:
    """One observation over the settings. A censored replicate is later than any that was reached."""

    reached: NDArray[np.int64]
    """(S,) replicates with a finite value."""
    censored: NDArray[np.int64]
    """(S,) replicates that did not reach it."""
    not_finite: NDArray[np.int64]
    """(S,) replicates whose value is NaN or infinite."""
    bound: Floats
    """(S,) the smallest bound up to which a replicate did not reach it, or NaN."""
    mean: Floats
    """(S,) of the finite values; NaN where there are none."""
    deviation: Floats
    """(S,) their standard deviation (n - 1); NaN for fewer than two."""
    heavy: NDArray[np.bool_]
    """(S,) whether one of many replicates makes up most of the squared spread."""
    median: Floats
    """(S,) NaN where the middle replicate was not reached."""
    median_error: Floats
    """(S,) half the distance between the quantiles 1/2 -+ 1/(2 sqrt R): where the sign test puts +-1 standard error.

    The lower half alone where the upper quantile was not reached; NaN for fewer than two replicates.
    """

    @property
    def replicates(self) -> NDArray[np.int64]:
        """(S,) replicates that were observed."""
        return self.reached + self.censored + self.not_finite

    @property
    def mean_error(self) -> Floats:
        """(S,) standard error of the mean."""
        return np.asarray(self.deviation / np.sqrt(np.maximum(self.reached, 1)), dtype=np.float64)


def spread(setting: NDArray[np.int64], settings: int, column: ObservationColumn) -> Spread:
    """Reduce one observation of N trials, each of a setting (N,), to its `settings` settings."""
    finite = column.reached & np.isfinite(column.value)
    where, value = setting[finite], column.value[finite]
    count = np.bincount(where, minlength=settings)
    some = np.maximum(count, 1)
    mean = np.bincount(where, value, minlength=settings) / some
    # Once more about the first mean: exact to rounding where the spread is small beside the mean.
    mean += np.bincount(where, value - mean[where], minlength=settings) / some
    off = (value - mean[where]) ** 2
    total = np.bincount(where, off, minlength=settings)
    largest = np.zeros(settings)
    np.maximum.at(largest, where, off)
    bound = np.full(settings, np.inf)
    np.minimum.at(bound, setting[column.censored], column.censored_at[column.censored])
    median, error = _medians(setting, settings, column, finite)
    return Spread(
        reached=count,
        censored=np.bincount(setting[column.censored], minlength=settings),
        not_finite=np.bincount(setting[column.reached & ~finite], minlength=settings),
        bound=np.where(np.isfinite(bound), bound, np.nan),
        mean=np.where(count > 0, mean, np.nan),
        deviation=np.where(count > 1, np.sqrt(total / np.maximum(count - 1, 1)), np.nan),
        heavy=(count >= HEAVY_FROM) & (largest > HEAVY_SHARE * total),
        median=median,
        median_error=error,
    )


def _medians(
    setting: NDArray[np.int64], settings: int, column: ObservationColumn, finite: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    seen = column.reached | column.censored
    where = setting[seen]
    # What is no finite number counts as later than any number: it sorts to the end of its setting.
    ranked = np.where(finite, column.value, np.inf)[seen]
    ranked = ranked[np.lexsort((ranked, where))]
    count = np.bincount(where, minlength=settings)
    start = np.concatenate([[0], np.cumsum(count)])[:-1]
    half = 0.5 / np.sqrt(np.maximum(count, 1))
    middle, low, high = (_quantile(ranked, start, count, 0.5 + side) for side in (0 * half, -half, half))
    with np.errstate(invalid="ignore"):
        error = np.where(np.isfinite(high), (high - low) / 2, middle - low)
    known = np.isfinite(middle) & np.isfinite(error) & (count > 1)
    return np.where(np.isfinite(middle), middle, np.nan), np.where(known, error, np.nan)


def _quantile(ranked: Floats, start: NDArray[np.int64], count: NDArray[np.int64], share: Floats) -> Floats:
    """(S,) Hazen's quantile of each setting; infinite where it touches what was not reached, NaN where all is empty."""
    found = np.full(len(count), np.nan)
    some = np.flatnonzero(count > 0)
    place = np.clip(count[some] * share[some] - 0.5, 0, count[some] - 1)
    below = np.floor(place).astype(np.int64)
    weight = place - below
    above = np.minimum(below + 1, count[some] - 1)
    low, high = ranked[start[some] + below], ranked[start[some] + above]
    with np.errstate(invalid="ignore"):
        found[some] = np.where(weight > 0, (1 - weight) * low + weight * high, low)
    return found
