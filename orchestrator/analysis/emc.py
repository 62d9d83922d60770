"""Effective model complexity: the largest number of samples that a training procedure still fits.

Nakkiran et al. 2019 (arXiv 1912.02292, Definition 1): EMC(T, eps) = max{n : E[train error of T on n samples] <= eps},
with eps = 0.1 in their experiments. The expectation is a mean over replicates, which draw the data and the
initialisation.

Shapes: R replicates, N training-set sizes, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np

from orchestrator.analysis.estimate import (
    LEVEL,
    RESAMPLES,
    SEED,
    Booleans,
    Estimate,
    Floats,
    increasing,
    multiplicities,
    percentile_interval,
    resampled_means,
    rows,
)

EPSILON: Final = 0.1
"""The training error of Nakkiran et al."""
ROUNDING: Final = 1e-12
"""Relative: a mean that equals epsilon but for rounding (three times 0.1 has a mean above 0.1) is at most epsilon."""


class Edge(StrEnum):
    """Where a value lies relative to the sizes that were trained."""

    INSIDE = "inside"
    """Between two sizes: interpolated."""
    ABOVE = "above"
    """Every size is fitted: the value is at least the largest size (right-censored)."""
    BELOW = "below"
    """No size is fitted: the value is below the smallest size (left-censored)."""


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """Effective model complexity of one setting, in training samples."""

    samples: Estimate
    """The value; where `edge` is not INSIDE it is the edge of the grid, and only a bound. An interval that reaches
    past the grid has the bound inf above it, and 0 below it."""
    edge: Edge
    largest_fitted: float
    """The largest trained size whose mean error is at most epsilon, as in the definition; 0 if there is none."""
    monotone: bool
    """False if a smaller size is not fitted although `largest_fitted` is: the mean error is not monotone in n, and
    the definition's value says nothing about those sizes."""
    not_fitted_below: tuple[float, ...]
    """Those smaller sizes."""
    replicates: int
    """The smallest number of replicates at any size. With one there is no interval: the bounds are 0 and inf."""


def effective_complexity(
    samples: Any, train_error: Any, *, epsilon: float = EPSILON, level: float = LEVEL, resamples: int = RESAMPLES
) -> Complexity:
    """The largest n whose mean training error is at most epsilon, interpolated to the next size.

    Between the largest fitted size and the next one the mean error is taken as linear in log n. The interval is the
    percentile bootstrap over replicates; a replicate is resampled at every size at once, since it may share its seed.

    Args:
        samples: (N,) training-set sizes, positive and increasing.
        train_error: (R, N) final training error of each replicate at each size, a fraction; NaN where a replicate
            was not trained.

    Raises:
        ValueError: a wrong shape, a size that is not positive, or a size without any replicate.
    """
    n = increasing("samples", samples)
    error = rows(train_error, len(n))
    if n[0] <= 0:
        raise ValueError("samples: positive numbers")
    count = (~np.isnan(error)).sum(0)
    if not count.all():
        raise ValueError(f"train_error: no replicate at n = {n[count == 0][0]:g}")
    mean = np.nanmean(error, axis=0)
    value, fitted = _crossing(n, mean[None], epsilon)
    below = n[: max(int(fitted[0]), 0)][mean[: max(int(fitted[0]), 0)] > epsilon]
    if error.shape[0] == 1:
        low, high = 0.0, np.inf
    else:
        random = np.random.default_rng(SEED)
        means = resampled_means(error, multiplicities(random, np.zeros(len(error)), resamples))
        crossings, last = _crossing(n, np.where(np.isnan(means), mean, means), epsilon)
        crossings = np.where(last == len(n) - 1, np.inf, np.where(last < 0, 0.0, crossings))
        low, high = percentile_interval(crossings, level)
    position = int(fitted[0])
    return Complexity(
        samples=Estimate(value=float(value[0]), low=low, high=high, level=level),
        edge=Edge.BELOW if position < 0 else Edge.ABOVE if position == len(n) - 1 else Edge.INSIDE,
        largest_fitted=float(n[position]) if position >= 0 else 0.0,
        monotone=not len(below),
        not_fitted_below=tuple(float(size) for size in below),
        replicates=int(count.min()),
    )


def _crossing(n: Floats, mean_BN: Floats, epsilon: float) -> tuple[Floats, np.ndarray]:
    """(B,) the interpolated value, or the edge of the grid; (B,) index of the largest fitted size, -1 for none."""
    fits: Booleans = mean_BN <= epsilon + ROUNDING * abs(epsilon)
    last = np.where(fits.any(1), len(n) - 1 - np.argmax(fits[:, ::-1], axis=1), -1)
    left = np.clip(last, 0, max(len(n) - 2, 0))
    right = np.minimum(left + 1, len(n) - 1)
    row = np.arange(len(mean_BN))
    rise = mean_BN[row, right] - mean_BN[row, left]
    inside = (last >= 0) & (last < len(n) - 1)
    share = np.divide(epsilon - mean_BN[row, left], rise, out=np.zeros(len(row)), where=inside)
    value = np.exp(np.log(n[left]) + np.clip(share, 0, 1) * np.log(n[right] / n[left]))
    return np.where(last < 0, n[0], np.where(last == len(n) - 1, n[-1], value)), last
