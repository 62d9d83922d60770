"""An estimate with its interval, and the bootstrap that most intervals come from.

The nonparametric bootstrap resamples with replacement (Efron and Tibshirani 1993, An Introduction to the Bootstrap,
chapters 6 and 13). A resample is stored as multiplicities, so that a resampled mean is a product with a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

LEVEL: Final = 0.9
"""Confidence level of an interval unless another one is asked for."""
RESAMPLES: Final = 1000
SEED: Final = 20_191_204
"""Of the resampling: the same data has the same interval."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its confidence interval, in the unit of the number.

    An infinite bound means that the data does not limit the number on that side; NaN means no estimate.
    """

    value: float
    low: float
    high: float
    level: float = LEVEL
    """Confidence level of (low, high)."""

    def covers(self, value: float) -> bool:
        """Whether the interval contains a value."""
        return self.low <= value <= self.high


def tails(level: float) -> tuple[float, float]:
    """Probabilities of the two ends of a central interval.

    Raises:
        ValueError: the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: a number between 0 and 1, not {level}")
    return (1 - level) / 2, (1 + level) / 2


def percentile_interval(values: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The central interval of resampled values.

    A bound is one of the values and never lies between two of them, so infinite (censored) values are allowed. NaN is
    left out; without any value the interval is unbounded.
    """
    lower, upper = tails(level)
    finite = values[~np.isnan(values)]
    if not len(finite):
        return -np.inf, np.inf
    low, high = np.quantile(finite, [lower, upper], method="inverted_cdf")
    return float(low), float(high)


def multiplicities(random: Generator, strata: NDArray[Any], resamples: int = RESAMPLES) -> Integers:
    """(B, N) how often each of N items is in each of B resamples; every stratum keeps its size.

    Args:
        strata: (N,) labels. Items are drawn with replacement among those of the same label.
    """
    counts = np.zeros((resamples, len(strata)), dtype=np.int64)
    for label in np.unique(strata):
        members = np.flatnonzero(strata == label)
        counts[:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
    return counts


def resampled_means(values_RN: Floats, counts_BR: Integers) -> Floats:
    """(B, N) mean over the resampled rows, without NaN; NaN where a resample has no value."""
    present = ~np.isnan(values_RN)
    total = counts_BR @ np.where(present, values_RN, 0.0)
    number = counts_BR @ present.astype(np.int64)
    means: Floats = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return means


def rows(values: Any, points: int, *, least: int = 1) -> Floats:
    """Values as an array (R, N): a row for each replicate, a column for each of `points` values of x.

    Raises:
        ValueError: another shape, or fewer than `least` rows.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != points or array.shape[0] < least:
        raise ValueError(f"values: an array ({least} or more replicates, {points} points), not {array.shape}")
    return array


def increasing(name: str, values: Any, *, least: int = 1) -> Floats:
    """Values as an array (N,) of strictly increasing finite numbers.

    Raises:
        ValueError: they are not, or fewer than `least`.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < least or not np.isfinite(array).all() or (np.diff(array) <= 0).any():
        raise ValueError(f"{name}: {least} or more finite, strictly increasing numbers")
    return array
