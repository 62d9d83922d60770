"""Fits of scaling laws with uncertainty: censored observations, many starts, bootstrap, model comparison.

Residuals are those of log y. Two losses:

- "normal": the likelihood of log-normal errors whose scale is fitted too. An interval (above, to] contributes the
  probability of that interval, so a censored observation is neither dropped nor taken for a number (accelerated failure
  time; Kalbfleisch and Prentice 2002, The Statistical Analysis of Failure Time Data, chapter 3).
- "huber": the sum of Huber losses with delta = 1e-3 (Hoffmann et al. 2022, arXiv 2203.15556, section 3.3), close to
  least absolute deviations. Exact observations only. The sum, divided by delta, is what is minimised: with a mean of
  such small losses an optimiser stops before the minimum (Besiroglu et al. 2024, arXiv 2404.10102).

Every start of a grid is minimised, and the best end is the fit. Each bootstrap resample is refitted from that end.

Shapes: N observations, D columns of x, P parameters, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from orchestrator.analysis.estimate import (
    LEVEL,
    SEED,
    Estimate,
    Floats,
    Integers,
    multiplicities,
    percentile_interval,
)
from orchestrator.analysis.laws import Law
from orchestrator.analysis.minimise import Minima, Objective, minimise
from orchestrator.analysis.survival import intervals

Loss = Literal["normal", "huber"]
DELTA: Final = 1e-3
RESAMPLES: Final = 400
_LEAST_SCALE: Final = 1e-6
"""Of the log-normal errors: below it a fit is exact, and its likelihood would have no maximum."""
_SAME: Final = 1e-6
_REFINED: Final = 60
"""Of more starts than these all are minimised roughly, and the best ones to the end."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """Observations of a law. y is in (above, to], in its own unit; `above` = `to` is exact, `to` = inf not reached."""

    x: Floats
    """(N, D) positive."""
    above: Floats
    to: Floats

    @property
    def exact(self) -> bool:
        """Whether no observation is censored."""
        return bool((self.above == self.to).all())

    @property
    def origin(self) -> float:
        """The smallest x at which the event was observed."""
        return float(self.x[np.isfinite(self.to), 0].min())

    @property
    def log_y(self) -> Floats:
        """(N,) log of y, of the geometric middle of an interval, or of its finite positive end."""
        low = np.where(self.above > 0, self.above, self.to)
        high = np.where(np.isfinite(self.to), self.to, self.above)
        middle: Floats = 0.5 * (np.log(low) + np.log(high))
        return middle

    def only(self, chosen: Any) -> Data:
        """Some of the observations."""
        return Data(x=self.x[chosen], above=self.above[chosen], to=self.to[chosen])


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """A law fitted to data, with percentile bootstrap intervals."""

    law: Law
    loss: Loss
    parameters: dict[str, Estimate]
    """Natural parameters of the law's formula."""
    scale: float
    """Standard deviation of log y about the law ("normal"), or its mean absolute deviation ("huber")."""
    log_likelihood: float
    """Of log y; under "huber" that of Laplace errors of this scale. Comparable within one loss and one data set."""
    aicc: float
    """Akaike's criterion, corrected for few observations (Hurvich and Tsai 1989); inf where there are too few."""
    observations: int
    censored: int
    """How many observations are intervals, not exact."""
    origin: float
    theta: Floats
    """(P,) internal parameters, and log scale under "normal"."""
    resampled: Floats
    """(B, P) internal parameters of the resamples."""
    level: float
    percentile_level: float
    """Level of the percentiles that have this level of confidence; above it, since resamples of few vary too little.
    NaN where so few events are left beyond the parameters, the scale among them, that it would be 1: no interval."""
    starts: int
    """How many starts were minimised to the end."""
    best_starts: int
    """How many of them reached the best end. With one of many, more starts may find a better one."""
    unconverged: int
    """Resamples whose minimisation was ended by the number of iterations. If these are many, the data does not
    determine all parameters, and their intervals are only as wide as the iterations went."""

    def predict(self, x: Any) -> tuple[Floats, Floats, Floats]:
        """(M,) value of the law at new x, and the ends of its pointwise interval (of the law, not of a trial)."""
        at = _columns(x, self.law.columns)
        count = len(self.law.parameters)
        values = np.exp(np.real(self.law.log_value(self.theta[None, :count], at, self.origin)))[0]
        resampled = np.exp(np.real(self.law.log_value(self.resampled[:, :count], at, self.origin)))
        ends = [_interval_of(column, self.percentile_level) for column in resampled.T]
        return values, np.array([low for low, _ in ends]), np.array([high for _, high in ends])


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One law among several, fitted to the same data."""

    law: str
    difference: float
    """AICc above that of the best law."""
    weight: float
    """Akaike weight: relative support among these laws; they add up to 1 (Burnham and Anderson 2002, section 2.9)."""


def observations(x: Any, y: Any = None, *, above: Any = None, to: Any = None) -> Data:
    """Observations of exact y, or of intervals (above, to].

    Args:
        x: (N,), or (N, D) for a law of several quantities; positive.
        y: (N,) exact values; positive.
        above, to: (N,) bounds, as in `survival`; an observation from 0 to inf says nothing and is refused.

    Raises:
        ValueError: values that are not positive, two lengths, both or neither of y and the bounds.
    """
    if (y is None) == (above is None or to is None):
        raise ValueError("y, or above and to")
    a, b = intervals(y if above is None else above, y if to is None else to)
    columns = np.asarray(x, dtype=np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if columns.shape[0] != len(a) or not (np.isfinite(columns) & (columns > 0)).all():
        raise ValueError("x: a positive number for each observation")
    if not ((a >= 0) & (b > 0) & ((a > 0) | np.isfinite(b))).all():
        raise ValueError("y: positive, or an interval that is bounded on one side")
    if np.isinf(b).all():
        raise ValueError("y: at least one observation that is not right-censored")
    return Data(x=columns, above=a, to=b)


def fit(
    law: Law,
    data: Data,
    *,
    loss: Loss = "normal",
    units: Any = None,
    strata: Any = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Fit:
    """Fit a law, with intervals.

    Args:
        units: (N,) labels of what is resampled as a whole. By default every observation on its own. Pass the replicate
            numbers if replicates share their seed along x, or the settings to include the law's lack of fit.
        strata: (N,) labels within which units are drawn. By default the settings (equal x) if `units` is None and
            every setting has two observations or more; everything otherwise.
        resamples: 0 gives parameters without intervals (NaN bounds).

    Raises:
        ValueError: fewer distinct x than parameters, censored observations with the Huber loss, other shapes.
        RuntimeError: no start has an end.
    """
    if data.x.shape[1] != law.columns:
        raise ValueError(f"x: {law.columns} column(s) for {law.formula}, not {data.x.shape[1]}")
    settings = np.unique(data.x, axis=0, return_inverse=True)[1].reshape(-1)
    if settings.max() + 1 < len(law.parameters):
        raise ValueError(f"x: at least {len(law.parameters)} distinct settings for {law.formula}")
    if loss == "huber" and not data.exact:
        raise ValueError("loss: 'normal' for censored observations; 'huber' is for exact ones")
    problem = _Problem(law, data, loss)
    ends = _from_starts(problem)
    best = int(np.argmin(ends.value))
    if not np.isfinite(ends.value[best]):
        raise RuntimeError(f"{law.formula}: no start has an end")
    theta = ends.theta[best]
    counts, size = _resample(settings, units, strata, resamples)
    again = minimise(
        problem.weighted(counts),
        np.tile(theta, (len(counts), 1)),
        metric=problem.metric(theta),
        tolerance=1e-8,
    )
    resampled = again.theta[np.isfinite(again.value)]
    count = len(law.parameters)
    natural = law.natural(theta[None, :count], problem.origin)[0]
    spread = law.natural(resampled[:, :count], problem.origin)
    scale, likelihood = problem.likelihood(theta)
    free, n = count + 1, len(data.above)
    wider = expanded_level(level, size, int(np.isfinite(data.to).sum()), free)
    wider = wider if wider < 1 else math.nan
    return Fit(
        law=law,
        loss=loss,
        parameters={
            name: _estimate(float(natural[p]), spread[:, p], level, wider) for p, name in enumerate(law.parameters)
        },
        scale=scale,
        log_likelihood=likelihood,
        aicc=2 * free - 2 * likelihood + 2 * free * (free + 1) / (n - free - 1) if n > free + 1 else math.inf,
        observations=n,
        censored=int((data.above < data.to).sum()),
        origin=problem.origin,
        theta=theta,
        resampled=resampled,
        level=level,
        percentile_level=wider,
        starts=len(ends.value),
        best_starts=int((ends.value <= ends.value[best] + _SAME * max(1.0, abs(ends.value[best]))).sum()),
        unconverged=int((~again.converged).sum()),
    )


def compare(fits: Sequence[Fit]) -> list[Compared]:
    """Fits of one data set by AICc, the best one first.

    A law with too few observations for AICc has no weight. If that is so for all of them, they are not compared: NaN.

    Raises:
        ValueError: no fit, or fits of different losses or data.
    """
    if len({(f.loss, f.observations, f.censored) for f in fits}) != 1:
        raise ValueError("fits: at least one, all of the same loss and data")
    best = min(f.aicc for f in fits)
    if not math.isfinite(best):
        return [Compared(law=f.law.name, difference=math.nan, weight=math.nan) for f in fits]
    differences = [f.aicc - best if math.isfinite(f.aicc) else math.inf for f in fits]
    weights = np.exp(-0.5 * np.array(differences))
    order = np.argsort(differences, kind="stable")
    return [
        Compared(law=fits[i].law.name, difference=differences[i], weight=float(weights[i] / weights.sum()))
        for i in order
    ]


def held_out(law: Law, data: Data, *, loss: Loss = "normal") -> Floats:
    """(S,) mean loss of the observations of each setting, under the law fitted to the other settings.

    Settings are in the order of x. "normal": minus the log-likelihood of log y, per observation; "huber": the mean
    absolute error of log y. Predicting the first and the last setting is extrapolation.

    Raises:
        ValueError: see `fit`, for the data without any one setting.
    """
    names, settings = np.unique(data.x, axis=0, return_inverse=True)
    settings = settings.reshape(-1)
    scores = []
    for setting in range(len(names)):
        inside = settings == setting
        fitted = fit(law, data.only(~inside), loss=loss, resamples=0)
        left = _Problem(law, data.only(inside), loss, origin=fitted.origin)
        scores.append(left.score(fitted.theta))
    return np.array(scores)


class _Problem:
    """The objective of a law, data and loss."""

    def __init__(self, law: Law, data: Data, loss: Loss, *, origin: float | None = None) -> None:
        self.law, self.data, self.loss = law, data, loss
        self.origin = data.origin if origin is None else origin
        self.width = len(law.parameters)
        self.exact = data.above == data.to
        with np.errstate(divide="ignore"):
            self.low, self.high = np.log(data.above), np.log(data.to)

    def weighted(self, counts_BN: Integers) -> Objective:
        """The objective of B reweighted problems."""
        weights = counts_BN.astype(np.float64)

        def objective(theta_MP: Floats, problems: Integers) -> tuple[Floats, Floats]:
            loss_MN, slopes = self.terms(theta_MP)
            weight = weights[problems]
            with np.errstate(all="ignore"):
                return (weight * loss_MN).sum(1), np.stack([(weight * slope).sum(1) for slope in slopes], 1)

        return objective

    def terms(self, theta_MP: Floats) -> tuple[Floats, list[Floats]]:
        """(M, N) loss of each observation, and its derivatives by each parameter."""
        with np.errstate(all="ignore"):
            log_y, jacobian = self.law.jacobian(theta_MP[:, : self.width], self.data.x, self.origin)
            if self.loss == "huber":
                residual = self.low - log_y
                size = np.abs(residual)
                loss = np.where(size < DELTA, 0.5 * residual**2 / DELTA, size - 0.5 * DELTA)
                slope = -np.clip(residual / DELTA, -1, 1)
                return loss, [slope * column for column in jacobian]
            return self._normal(log_y, jacobian, theta_MP[:, self.width :])

    def _normal(self, log_y: Floats, jacobian: Floats, log_scale: Floats) -> tuple[Floats, list[Floats]]:
        scale = np.exp(np.maximum(log_scale, math.log(_LEAST_SCALE)))
        loss, slope = np.empty_like(log_y), np.empty_like(log_y)
        spread = np.empty_like(log_y)
        z = (self.low[self.exact] - log_y[:, self.exact]) / scale
        loss[:, self.exact] = np.log(scale) + 0.5 * z**2 + 0.5 * math.log(2 * math.pi)
        slope[:, self.exact], spread[:, self.exact] = -z / scale, 1 - z**2
        inside = ~self.exact
        if inside.any():
            terms = _interval(
                (self.low[inside] - log_y[:, inside]) / scale, (self.high[inside] - log_y[:, inside]) / scale
            )
            loss[:, inside] = terms[0]
            slope[:, inside], spread[:, inside] = terms[1] / scale, terms[2]
        spread = np.where(log_scale > math.log(_LEAST_SCALE), spread, 0.0)
        return loss, [*(slope * column for column in jacobian), spread]

    def metric(self, theta: Floats) -> Floats:
        """(P, P) about the inverse Hessian at a minimum: the inverse of the information of errors of its scale."""
        scale, _ = self.likelihood(theta)
        jacobian = self.law.jacobian(theta[None, : self.width], self.data.x, self.origin)[1][:, 0]
        information = jacobian @ jacobian.T / (scale**2 if self.loss == "normal" else scale)
        if self.loss == "normal":
            information = np.pad(information, (0, 1))
            information[-1, -1] = 2 * len(self.low)
        size, axes = np.linalg.eigh(information)
        inverse: Floats = (axes / np.maximum(size, 1e-9 * size.max())) @ axes.T
        return inverse

    def likelihood(self, theta: Floats) -> tuple[float, float]:
        """Scale of the errors, and log-likelihood of log y."""
        loss = float(self.terms(theta[None])[0].sum())
        if self.loss == "normal":
            return max(float(np.exp(theta[self.width])), _LEAST_SCALE), -loss
        count = len(self.low)
        scale = max(loss / count, _LEAST_SCALE)
        return scale, -count * (math.log(2 * scale) + 1)

    def score(self, theta: Floats) -> float:
        """Mean loss of an observation."""
        return float(self.terms(theta[None])[0].mean())


def _interval(low: Floats, high: Floats) -> tuple[Floats, Floats, Floats]:
    """-log(Phi(high) - Phi(low)), and its derivatives by a shift of the law and by log scale, in units of the scale."""
    from scipy.special import log_ndtr

    # In the upper tail both probabilities are near 1: mirror the interval there.
    flip = low > 0
    a, b = np.where(flip, -high, low), np.where(flip, -low, high)
    top, bottom = log_ndtr(b), log_ndtr(a)
    probability = top + np.log1p(-np.exp(np.minimum(bottom - top, -1e-15)))
    density = [
        np.where(np.isfinite(z), np.exp(-0.5 * z**2 - 0.5 * math.log(2 * math.pi) - probability), 0.0)
        for z in (low, high)
    ]
    by_scale = [np.where(np.isfinite(z), z, 0.0) * d for z, d in zip((low, high), density, strict=True)]
    loss: Floats = -probability
    return loss, density[1] - density[0], by_scale[1] - by_scale[0]


def _from_starts(problem: _Problem) -> Minima:
    starts = problem.law.starts(problem.data.x, problem.data.log_y, problem.origin)
    starts = starts[np.isfinite(starts).all(1)]
    if problem.loss == "normal":
        with np.errstate(all="ignore"):
            log_y = problem.law.jacobian(starts, problem.data.x, problem.origin)[0]
            errors = np.where(np.isfinite(problem.data.to), problem.data.log_y - log_y, 0.0)
        scale = np.clip(np.sqrt((errors**2).mean(1)), 1e-3, 3.0)
        starts = np.concatenate([starts, np.log(scale)[:, None]], 1)
    objective = problem.weighted(np.ones((1, len(problem.low)), dtype=np.int64))

    def same(theta: Floats, problems: Integers) -> tuple[Floats, Floats]:
        return objective(theta, 0 * problems)

    if len(starts) > _REFINED:
        rough = minimise(same, starts, tolerance=1e-2, iterations=15)
        starts = rough.theta[np.argsort(rough.value)[:_REFINED]]
    return minimise(same, starts)


def _resample(settings: Integers, units: Any, strata: Any, resamples: int) -> tuple[Integers, float]:
    """(B, N) multiplicities of the observations, and the typical number of units in a stratum."""
    random = np.random.default_rng(SEED)
    labels = np.arange(len(settings)) if units is None else np.asarray(units)
    if units is None and strata is None and np.bincount(settings).min() > 1:
        strata = settings
    unit, first, member = np.unique(labels, return_index=True, return_inverse=True)
    groups = np.zeros(len(unit)) if strata is None else np.asarray(strata)[first]
    sizes = np.unique(groups, return_counts=True)[1]
    return multiplicities(random, groups, resamples)[:, member.reshape(-1)], float(np.median(sizes))


def expanded_level(level: float, size: float, events: int, free: int) -> float:
    """The percentile level with which a bootstrap of few has the coverage `level` (Hesterberg 2015, Amer. Statist. 69,
    371: the expanded percentile interval).

    A resample of n units varies with n - 1 in place of n, and the scale of errors about a fit of `free` parameters to
    `events` observed events is too small by that of a maximum-likelihood estimate. NaN: these say nothing of an error.
    """
    from scipy.special import ndtr, stdtrit

    if size < 2 or events <= free:
        return math.nan
    quantile = float(stdtrit(events - free, (1 + level) / 2)) * math.sqrt(size / (size - 1) * events / (events - free))
    return float(2 * ndtr(quantile) - 1)


def _columns(x: Any, columns: int) -> Floats:
    array = np.asarray(x, dtype=np.float64)
    return array[:, None] if array.ndim == 1 and columns == 1 else array.reshape(-1, columns)


def _estimate(value: float, resampled: Floats, level: float, percentile_level: float) -> Estimate:
    low, high = _interval_of(resampled, percentile_level) if len(resampled) else (math.nan, math.nan)
    return Estimate(value=value, low=low, high=high, level=level)


def _interval_of(resampled: Floats, percentile_level: float) -> tuple[float, float]:
    """NaN where there is no level."""
    return (math.nan, math.nan) if math.isnan(percentile_level) else percentile_interval(resampled, percentile_level)
