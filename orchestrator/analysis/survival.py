"""Times to an event, such as generalisation: survival curves and medians of censored observations.

An observation is an interval (above, to]: the event came after the step `above` and by the step `to`. A step found on
a schedule of reports is (previous report, report]; an exact step t is written above = to = t; an event that was not
reached by the horizon h is (h, inf). Steps are in optimiser steps, or in any other unit throughout.

- Interval-censored data: the nonparametric maximum-likelihood estimate of Turnbull (1976, J. R. Statist. Soc. B 38,
  290), computed by the constrained Newton method (Wang 2008, Comput. Statist. Data Anal. 52, 2388): each step is a
  least-squares problem with nonnegative unknowns. A step of expectation maximisation follows each, which no rounding
  of the least squares stops. Convergence is certified by the derivative of the likelihood.
- Right-censored data: Kaplan and Meier (1958), with Greenwood's variance and a log-log interval (scipy.stats.ecdf).
- The interval of a median: order statistics of the bounds. It holds whatever the distribution, and whatever the
  interval censoring; its coverage is at least the level.

Shapes: N observations, J intervals in which the estimate has mass.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from orchestrator.analysis.estimate import LEVEL, Booleans, Estimate, Floats, tails

_TOLERANCE: Final = 1e-10
"""Largest derivative of the mean log-likelihood towards any one interval."""
_ITERATIONS: Final = 500


@dataclass(frozen=True, kw_only=True, eq=False)
class IntervalCurve:
    """Distribution of interval-censored times: where inside an interval its mass lies is not determined."""

    above: Floats
    """(J,) left ends of the intervals with mass, increasing."""
    to: Floats
    """(J,) right ends; equal to `above` for an exact time, inf for what was not reached."""
    mass: Floats
    """(J,) probabilities; they add up to 1."""

    @property
    def survival(self) -> Floats:
        """(J,) probability that the event comes after the right end of each interval."""
        left: Floats = np.clip(1 - np.cumsum(self.mass), 0, None)
        return left

    def quantile(self, share: float) -> tuple[float, float]:
        """The interval (above, to] in which the cumulative probability reaches `share`."""
        reached = np.flatnonzero(np.cumsum(self.mass) >= share - 1e-9)
        return float(self.above[reached[0]]), float(self.to[reached[0]])


@dataclass(frozen=True, kw_only=True, eq=False)
class SurvivalCurve:
    """Kaplan-Meier estimate: the share that has not had the event after each time, with a pointwise interval."""

    time: Floats
    """(J,) times of events and of censoring, increasing."""
    survival: Floats
    low: Floats
    high: Floats
    level: float
    median: Estimate
    """The first time at which the survival is at most 1/2, and the times at which the bounds are (Brookmeyer and
    Crowley 1982, Biometrics 38, 29); inf where they never are."""


@dataclass(frozen=True, kw_only=True)
class Median:
    """A quantile of interval-censored times; a median unless asked for another."""

    above: float
    to: float
    """The estimate lies in (above, to]; to = inf: not reached by enough trials."""
    low: float
    high: float
    """Confidence interval; 0 (or -inf, of negative ones) and inf where there are too few trials, or too many did not
    reach the event."""
    level: float
    count: int
    not_reached: int
    """Number of right-censored observations."""

    def covers(self, time: float) -> bool:
        """Whether the confidence interval contains a time."""
        return self.low <= time <= self.high


def intervals(above: Any, to: Any) -> tuple[Floats, Floats]:
    """Observations as two arrays (N,).

    Raises:
        ValueError: another shape, none, NaN, or an interval that ends before it begins.
    """
    a, b = np.asarray(above, dtype=np.float64), np.asarray(to, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"above and to: two arrays of one length, not {a.shape} and {b.shape}")
    if not (np.isfinite(a) & (b >= a)).all():
        raise ValueError("above and to: finite `above`, and `to` not below it")
    return a, b


def turnbull(above: Any, to: Any) -> IntervalCurve:
    """The maximum-likelihood distribution of interval-censored times, without any assumption about its form.

    Raises:
        ValueError: see `intervals`.
    """
    a, b = intervals(above, to)
    pairs, count = np.unique(np.stack([a, b], 1), axis=0, return_counts=True)
    left, right, member_NJ = _innermost(pairs[:, 0], pairs[:, 1])
    mass = _most_likely(member_NJ.astype(np.float64), count / len(a))
    kept = mass > 0
    return IntervalCurve(above=left[kept], to=right[kept], mass=mass[kept])


def median_time(above: Any, to: Any, *, share: float = 0.5, level: float = LEVEL) -> Median:
    """The median of interval-censored times, with an interval from order statistics.

    Of the true times the l-th smallest is above the l-th smallest of `above`, and the u-th smallest is at most the
    u-th smallest of `to`. With l and u from the binomial distribution of the number of times below the median, these
    are bounds with at least the given coverage (David and Nagaraja 2003, Order Statistics, section 7.1).

    Args:
        share: which quantile.

    Raises:
        ValueError: see `intervals`.
    """
    from scipy.stats import binom

    a, b = intervals(above, to)
    lower, upper = tails(level)
    numbers = np.arange(len(a) + 1)
    cumulative = binom.cdf(numbers, len(a), share)
    # The l-th smallest is above the quantile with probability P(K < l), the u-th below it with P(K >= u).
    first = int((cumulative <= lower).sum())
    last = int((cumulative < upper).sum()) + 1
    estimate = turnbull(a, b).quantile(share)
    return Median(
        above=estimate[0],
        to=estimate[1],
        low=float(np.sort(a)[first - 1]) if first else 0.0 if a.min() >= 0 else -np.inf,
        high=float(np.sort(b)[last - 1]) if last <= len(b) else np.inf,
        level=level,
        count=len(a),
        not_reached=int(np.isinf(b).sum()),
    )


def kaplan_meier(time: Any, reached: Any, *, level: float = LEVEL) -> SurvivalCurve:
    """Survival of right-censored times.

    Args:
        time: (N,) time of the event, or of the end of the observation.
        reached: (N,) bool: whether the event was reached.

    Raises:
        ValueError: two lengths, or no observation.
    """
    from scipy.stats import CensoredData, ecdf

    times, events = np.asarray(time, dtype=np.float64), np.asarray(reached, dtype=bool)
    if times.ndim != 1 or times.shape != events.shape or not len(times):
        raise ValueError(f"time and reached: two arrays of one length, not {times.shape} and {events.shape}")
    tails(level)
    survival = ecdf(CensoredData(uncensored=times[events], right=times[~events])).sf
    with warnings.catch_warnings():
        # It is undefined where the survival is 1 or 0; replaced below.
        warnings.simplefilter("ignore", RuntimeWarning)
        bounds = survival.confidence_interval(confidence_level=level, method="log-log")
    share = np.asarray(survival.probabilities, dtype=np.float64)
    low, high = (np.array(bound.probabilities, dtype=np.float64) for bound in (bounds.low, bounds.high))
    low[share >= 1], high[share >= 1] = 1.0, 1.0
    low[share <= 0] = 0.0
    if len(share) > 1 and share[-1] <= 0:
        high[-1] = high[-2]
    elif share[-1] <= 0:
        high[-1] = 1.0

    def first_half(values: Floats) -> float:
        below = np.flatnonzero(values <= 0.5 + 1e-12)
        return float(survival.quantiles[below[0]]) if len(below) else np.inf

    return SurvivalCurve(
        time=np.asarray(survival.quantiles, dtype=np.float64),
        survival=share,
        low=low,
        high=high,
        level=level,
        median=Estimate(value=first_half(share), low=first_half(low), high=first_half(high), level=level),
    )


def _innermost(above: Floats, to: Floats) -> tuple[Floats, Floats, Booleans]:
    """(J,) ends of the intervals that can have mass, and (N, J) which observation contains which.

    They begin at a left end that is followed by a right end. At one time the order is: the left end of an exact
    observation, which contains the time; right ends; left ends of the others, which do not.
    """
    exact = above == to
    left = np.stack([above, np.where(exact, 0.0, 2.0)], 1)
    right = np.stack([to, np.ones(len(to))], 1)
    ends, place = np.unique(np.concatenate([left, right]), axis=0, return_inverse=True)
    place = place.reshape(-1)
    is_right = ends[:, 1] == 1
    starts = np.flatnonzero(~is_right[:-1] & is_right[1:])
    left_place, right_place = place[: len(above)], place[len(above) :]
    member = (left_place[:, None] <= starts) & (starts + 1 <= right_place[:, None])
    return ends[starts, 0], ends[starts + 1, 0], member


def _most_likely(member_NJ: Floats, weight_N: Floats) -> Floats:
    """(J,) probabilities p that maximise sum_i weight_i log(member p)_i.

    No iteration makes them less likely. The mean log-likelihood is below the maximum by at most the largest derivative.
    """
    from scipy.optimize import nnls

    mass = np.full(member_NJ.shape[1], 1 / member_NJ.shape[1])
    root = np.sqrt(weight_N)[:, None]
    for _ in range(_ITERATIONS):
        slope_NJ = member_NJ / (member_NJ @ mass)[:, None]
        if (weight_N @ slope_NJ).max() <= 1 + _TOLERANCE:
            break
        # min |slope p - 2| over the simplex, as one problem with p >= 0 (Dax 1990): append a row of ones.
        system = np.concatenate([root * (slope_NJ - 2), np.ones((1, len(mass)))])
        try:
            target, _ = nnls(system, np.append(np.zeros(len(weight_N)), 1.0))
        except RuntimeError:  # its own limit of iterations
            target = mass
        change = target / target.sum() - mass
        mass = mass + _best_step(member_NJ @ mass, member_NJ @ change, weight_N) * change
        mass[mass < 1e-14] = 0.0
        mass *= weight_N @ (member_NJ / (member_NJ @ mass)[:, None])
        mass /= mass.sum()
    return mass


def _best_step(share_N: Floats, change_N: Floats, weight_N: Floats) -> float:
    """The step in [0, 1] with the largest sum_i weight_i log(share + step change)_i, a concave function.

    It is found by the sign of the derivative: near the maximum the function itself changes by less than its rounding.
    """

    def rises(step: float) -> bool:
        return float(weight_N @ (change_N / np.maximum(share_N + step * change_N, 1e-300))) >= 0

    low, high = 0.0, 1.0
    if rises(high):
        return high
    while high - low > 1e-15:
        middle = (low + high) / 2
        low, high = (middle, high) if rises(middle) else (low, middle)
    return low


def contains(curve: IntervalCurve, above: Floats, to: Floats) -> Booleans:
    """(N, J) whether each observation contains each interval of an estimate."""
    exact, point = above == to, curve.above == curve.to
    starts: Booleans = (above[:, None] < curve.above) | (
        (above[:, None] == curve.above) & (exact[:, None] | ~point[None])
    )
    inside: Booleans = starts & (curve.to <= to[:, None])
    return inside
