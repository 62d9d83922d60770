"""Double descent: the peak of a mean curve over replicates, along width, samples or steps, or none.

A peak is an interior point from which the smoothed mean curve falls on both sides. Its prominence is
f(t) - max(min f before t, min f after t), as in topographic prominence, and it is divided by the standard error of the
same difference over replicates. The largest of many such ratios is large by chance too, the more so with few
replicates, so it is compared with its distribution on curves without a peak: the best fit to the mean curve that falls
and then rises (isotonic regression; Barlow et al. 1972), plus Gaussian combinations of the replicates' residuals
(a multiplier bootstrap of a studentised maximum; Chernozhukov, Chetverikov and Kato 2013, Ann. Statist. 41, 2786). A
peak is reported if the ratio exceeds both three and the 98% quantile of that distribution. The fitted curve follows
some of the noise, so the share of false peaks is above 2% on curves that are nearly constant, and below 5%
(`make science`).

A fall and a rise towards the end (overfitting) is therefore no peak, and neither is a plateau at an end.

Shapes: R replicates, N points of x, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from orchestrator.analysis.estimate import (
    LEVEL,
    RESAMPLES,
    SEED,
    Estimate,
    Floats,
    Integers,
    increasing,
    multiplicities,
    percentile_interval,
    rows,
)
from orchestrator.analysis.smoothing import WINDOW, smooth

STANDARD_ERRORS: Final = 3.0
"""The least prominence of a peak."""
FALSE_POSITIVES: Final = 0.02
"""Nominal share of curves without a peak on which one is reported."""
_SIMULATIONS: Final = 400
RULE: Final = (
    "a maximum is reported as a peak where its ratio exceeds the threshold. The ratio is the smaller of the falls on "
    "its two sides, each divided by its standard error over replicates. The threshold is the "
    f"{1 - FALSE_POSITIVES:.0%} quantile of the ratio on {_SIMULATIONS} simulated curves without a peak "
    f"(p of about {FALSE_POSITIVES:g}), and at least {STANDARD_ERRORS:g}"
)
_CHUNK_VALUES: Final = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Peak:
    """A peak of the smoothed mean curve; x in its own unit, heights in the unit of the metric.

    The interval of a place includes the next point on each side: a maximum of values on a grid is no better known.
    """

    x: Estimate
    height: Estimate
    first_minimum: Estimate
    """The smallest value before the peak."""
    first_minimum_x: Estimate
    second_minimum: Estimate
    """The smallest value after the peak."""
    second_minimum_x: Estimate


@dataclass(frozen=True, kw_only=True)
class PeakSearch:
    """The most prominent interior maximum of a mean curve, and whether it is a peak."""

    peak: Peak | None
    """None: no peak."""
    prominence: float
    """Of the most prominent interior maximum, whether or not it is a peak; in the unit of the metric. 0 if the curve
    has no interior maximum."""
    standard_error: float
    """Of the prominence, over replicates."""
    ratio: float
    """The smaller of the two falls beside the maximum, each divided by its own standard error."""
    threshold: float
    """The ratio above which the maximum is a peak; at least `STANDARD_ERRORS`."""
    p_value: float
    """Share of curves without a peak whose ratio is at least as large."""
    replicates: int


def find_peak(
    x: Any, values: Any, *, window: float = WINDOW, level: float = LEVEL, resamples: int = RESAMPLES
) -> PeakSearch:
    """The peak of the mean over replicates, with bootstrap intervals of its place and height, or none.

    Args:
        x: (N,) steps, widths or samples, increasing; at least 0 unless the window is 1.
        values: (R, N) the metric of each replicate. Without NaN: a replicate that diverged has no curve to average.
        window: half-width of the smoothing window as a factor of x. Along steps leave it; along an axis of few widths
            pass 1, no smoothing.
        level: confidence level of the intervals. They are conditional on there being a peak.
        resamples: bootstrap resamples of the replicates.

    Raises:
        ValueError: fewer than two replicates (one curve has no standard error), a NaN, or an x that does not increase
            or is negative and smoothed.
    """
    position = increasing("x", x, least=1)
    curves = rows(values, len(position), least=2)
    if not np.isfinite(curves).all():
        raise ValueError("values: finite numbers; leave out replicates that diverged")
    smoothed = smooth(position, curves, window=window)
    count = len(smoothed)
    mean = smoothed.mean(0)
    if len(position) < 3:
        return _none(count)
    (before,), (top,), (after,), (prominence,) = _highest(mean[None])
    ratio, error = (float(part[0]) for part in _ratio(smoothed[None]))
    null = _null_ratios(smoothed, valley(mean))
    threshold = max(STANDARD_ERRORS, float(np.quantile(null, 1 - FALSE_POSITIVES, method="higher")))
    p_value = float((1 + (null >= ratio).sum()) / (1 + len(null)))
    peak = None
    if prominence > 0 and ratio > threshold:
        peak = _intervals(position, smoothed, (int(before), int(top), int(after)), level=level, resamples=resamples)
    return PeakSearch(
        peak=peak,
        prominence=max(float(prominence), 0.0),
        standard_error=error,
        ratio=ratio,
        threshold=threshold,
        p_value=p_value,
        replicates=count,
    )


def valley(values: Floats) -> Floats:
    """(N,) the least-squares fit to a curve by one that falls up to some point and rises after it.

    Each candidate for the lowest point takes two isotonic regressions; on long curves not every point is a candidate.
    """
    from scipy.optimize import isotonic_regression

    best, least = values, np.inf
    candidates = np.unique(np.linspace(0, len(values), min(len(values) + 1, 129)).astype(int))
    for split in candidates:
        parts = [np.asarray(isotonic_regression(values[:split], increasing=False).x)] if split else []
        parts += [np.asarray(isotonic_regression(values[split:]).x)] if split < len(values) else []
        fitted = np.concatenate(parts)
        squares = float(((fitted - values) ** 2).sum())
        if squares < least:
            best, least = fitted, squares
    return best


def _highest(curves: Floats) -> tuple[Integers, Integers, Integers, Floats]:
    """For each of (M, N) curves: minimum before, most prominent interior maximum, minimum after, and its prominence."""
    low = np.minimum.accumulate(curves, axis=1)[:, :-2]
    high = np.minimum.accumulate(curves[:, ::-1], axis=1)[:, ::-1][:, 2:]
    fall = curves[:, 1:-1] - np.maximum(low, high)
    top = np.argmax(fall, axis=1) + 1
    column = np.arange(curves.shape[1])
    before = np.argmin(np.where(column < top[:, None], curves, np.inf), axis=1)
    after = np.argmin(np.where(column > top[:, None], curves, np.inf), axis=1)
    return before, top, after, fall[np.arange(len(curves)), top - 1]


def _ratio(replicates: Floats) -> tuple[Floats, Floats]:
    """For each of (M, R, N) samples of replicates: the smaller fall in standard errors, and the prominence's error."""
    before, top, after, _ = _highest(replicates.mean(1))
    sample = np.arange(len(replicates))[:, None]
    replicate = np.arange(replicates.shape[1])[None]
    peak = replicates[sample, replicate, top[:, None]]
    falls = np.stack([peak - replicates[sample, replicate, place[:, None]] for place in (before, after)])
    means = falls.mean(2)
    errors = falls.std(2, ddof=1) / np.sqrt(replicates.shape[1])
    # Replicates that agree to rounding have no error of their own.
    floor = 1e-12 * np.abs(replicates).max(axis=(1, 2))
    ratio = means / np.maximum(errors, floor + np.finfo(float).tiny)
    smaller = np.argmin(means, axis=0)
    return ratio.min(0), errors[smaller, np.arange(len(smaller))]


def _null_ratios(smoothed: Floats, null: Floats) -> Floats:
    """(S,) ratios on simulated replicates whose true mean has no peak, with the covariance of the real ones."""
    count, points = smoothed.shape
    residuals = (smoothed - smoothed.mean(0)) / np.sqrt(count - 1)
    random = np.random.default_rng(SEED)
    chunk = max(1, _CHUNK_VALUES // (count * points))
    ratios = []
    for start in range(0, _SIMULATIONS, chunk):
        normal = random.standard_normal((min(chunk, _SIMULATIONS - start), count, count))
        ratios.append(_ratio(null + normal @ residuals)[0])
    return np.concatenate(ratios)


def _intervals(x: Floats, smoothed: Floats, places: tuple[int, int, int], *, level: float, resamples: int) -> Peak:
    counts = multiplicities(np.random.default_rng(SEED), np.zeros(len(smoothed)), resamples)
    means = counts @ smoothed / len(smoothed)
    before, top, after, _ = _highest(means)
    curve = smoothed.mean(0)
    row = np.arange(resamples)

    def estimates(place: int, resampled: Integers) -> tuple[Estimate, Estimate]:
        first, last = percentile_interval(resampled.astype(np.float64), level)
        at = x[max(int(first) - 1, 0)], x[min(int(last) + 1, len(x) - 1)]
        height = percentile_interval(means[row, resampled], level)
        return (
            Estimate(value=float(x[place]), low=float(at[0]), high=float(at[1]), level=level),
            Estimate(value=float(curve[place]), low=height[0], high=height[1], level=level),
        )

    (first_x, first), (peak_x, height), (second_x, second) = (
        estimates(place, resampled) for place, resampled in zip(places, (before, top, after), strict=True)
    )
    return Peak(
        x=peak_x,
        height=height,
        first_minimum=first,
        first_minimum_x=first_x,
        second_minimum=second,
        second_minimum_x=second_x,
    )


def _none(replicates: int) -> PeakSearch:
    return PeakSearch(
        peak=None,
        prominence=0.0,
        standard_error=0.0,
        ratio=0.0,
        threshold=STANDARD_ERRORS,
        p_value=1.0,
        replicates=replicates,
    )
