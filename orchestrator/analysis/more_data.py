"""Where more data hurts, and from which size on a network interpolates its training set.

Nakkiran et al. 2019 (arXiv 1912.02292, section 7) show test errors that rise with the number of samples. Here the claim
is tested: for every number of samples n and every setting, E[error(2n) - error(n)] > 0, by a one-sided t test of the
differences within replicates. The p-values of a whole family are adjusted by Holm's method (Holm 1979, Scand. J.
Statist. 6, 65), which bounds the probability of any false claim whatever their dependence.

Shapes: R replicates, N training-set sizes, D pairs (n, 2n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from orchestrator.analysis.emc import ROUNDING, Complexity, effective_complexity
from orchestrator.analysis.estimate import LEVEL, RESAMPLES, Estimate, Floats, increasing, rows
from orchestrator.analysis.means import means_of

FAMILY_WISE_ERROR: Final = 0.05
"""Probability of at least one false claim in a family."""
SAME_SIZE: Final = 0.02
"""Relative difference up to which a trained size stands for 2n."""
INTERPOLATED_ERROR: Final = 0.01
"""Training error at or below which a model interpolates."""


@dataclass(frozen=True, kw_only=True)
class Doubling:
    """The effect of twice as much data at one n."""

    samples: float
    """n."""
    doubled: float
    """The size that stands for 2n: a trained one, or 2n itself if `interpolated`."""
    difference: Estimate
    """Mean of error(2n) - error(n) over replicates, with its t interval, not adjusted for the family."""
    p_value: float
    """One-sided; NaN with fewer than two replicates."""
    adjusted: float = np.nan
    """By Holm's method over the family; NaN with fewer than two replicates."""
    interpolated: bool
    """Whether error(2n) was taken from the trained sizes beside 2n, as linear in log n."""
    replicates: int

    def hurts(self, alpha: float = FAMILY_WISE_ERROR) -> bool:
        """Whether more data hurts here, with a family-wise error rate of at most `alpha`."""
        return bool(self.adjusted <= alpha)


def more_data_hurts(settings: Sequence[tuple[Any, Any]], *, level: float = LEVEL) -> list[tuple[Doubling, ...]]:
    """Compare n with 2n in every setting; all comparisons together are the family.

    Args:
        settings: of each, the (N,) increasing training-set sizes and the (R, N) test error of each replicate at each
            size, NaN where a replicate was not trained. A replicate is compared with itself, since its sizes may share
            a seed.
        level: of the intervals.

    Returns:
        For each setting, a comparison for every n with 2n inside the trained range and at least one replicate.

    Raises:
        ValueError: sizes that do not increase or are not positive, or a wrong shape.
    """
    compared = [_compare(samples, error, level) for samples, error in settings]
    flat = [doubling for own in compared for doubling in own]
    adjusted = iter(holm(np.array([doubling.p_value for doubling in flat])).tolist())
    return [tuple(replace(doubling, adjusted=next(adjusted)) for doubling in own) for own in compared]


def _compare(samples: Any, error: Any, level: float) -> list[Doubling]:
    from scipy.special import stdtr

    n = increasing("samples", samples)
    values = rows(error, len(n))
    if n[0] <= 0:
        raise ValueError("samples: positive numbers")
    position, found = np.log(n), []
    for k, size in enumerate(n):
        if 2 * size > n[-1] * (1 + SAME_SIZE):
            break
        nearest = int(np.argmin(np.abs(position - np.log(2 * size))))
        exact = abs(n[nearest] / (2 * size) - 1) <= SAME_SIZE
        if exact:
            doubled, at = float(n[nearest]), values[:, nearest]
        else:
            right = int(np.searchsorted(n, 2 * size))
            share = (np.log(2 * size) - position[right - 1]) / (position[right] - position[right - 1])
            doubled, at = float(2 * size), (1 - share) * values[:, right - 1] + share * values[:, right]
        off = (at - values[:, k])[np.isfinite(at) & np.isfinite(values[:, k])]
        if not len(off):
            continue
        count = len(off)
        spread = off.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
        # Differences that agree to rounding have no error of their own.
        floor = 1e-12 * np.nanmax(np.abs(values)) + np.finfo(float).tiny
        p_value = float(stdtr(count - 1, -off.mean() / max(spread, floor))) if count > 1 else np.nan
        found.append(
            Doubling(
                samples=float(size),
                doubled=doubled,
                difference=means_of(off[:, None], level=level).estimate(0, level=level),
                p_value=p_value,
                interpolated=not exact,
                replicates=count,
            )
        )
    return found


def holm(p_values: Floats) -> Floats:
    """(D,) p-values adjusted by Holm's step-down method; NaN is no test, and stays NaN."""
    adjusted = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    scaled = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def interpolation_threshold(
    size: Any,
    train_error: Any,
    *,
    epsilon: float = INTERPOLATED_ERROR,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Complexity:
    """The size (width, parameters) from which on the mean training error is at most epsilon.

    The mirror image of the effective model complexity: the largest size that does *not* interpolate, moved towards the
    next one to where the error, linear in log size, crosses epsilon. `edge` is ABOVE where the largest size does not
    interpolate (the threshold is at least that), and BELOW where every size does. `not_fitted_below` are smaller sizes
    that do interpolate although a larger one does not; `monotone` is then False.

    Args:
        size: (N,) positive and increasing.
        train_error: (R, N) final training error of each replicate at each size; NaN where it was not trained.

    Raises:
        ValueError: as `effective_complexity`.
    """
    # An error of epsilon itself interpolates, also after rounding.
    above = -float(np.nextafter(epsilon * (1 + 2 * ROUNDING), np.inf))
    return effective_complexity(size, -rows(train_error, len(size)), epsilon=above, level=level, resamples=resamples)
