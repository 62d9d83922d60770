"""Critical points: where the share of seeds that generalise passes one half, and how it depends on the size.

- `threshold`: a logistic or probit curve fitted to shares, with profile-likelihood intervals (Venzon and Moolgavkar
  1988, Appl. Statist. 37, 87). They hold where every seed changes at one place (complete separation), where the width
  has no lower bound and Wald intervals fail.
- `collapse`: finite-size scaling, y = L^-zeta/nu F((x - x_c) L^1/nu) for sizes L (a modulus p, a width N). The quality
  S of the collapse is that of Houdayer and Hartmann (2004, Phys. Rev. B 70, 014418): the reduced chi-squared of the
  points of each size about a line through the neighbouring points of the other sizes. About 1 is a good collapse.
- `scaled_threshold`: the same scaling of a share with a logistic F, by binomial likelihood. With few seeds a setting it
  is far more precise than `collapse`, whose weights are uncertain there; the quality of the collapse remains the check
  of the assumption. The critical point may be that of an infinite size (one for all sizes), or move with the size.

Shapes: N settings, K sizes, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from orchestrator.analysis.estimate import LEVEL, SEED, Estimate, Floats, Integers, percentile_interval, tails
from orchestrator.analysis.minimise import Minima, minimise

Link = Literal["logistic", "probit"]
_GRID: Final = 33
_ZOOMS: Final = 4
_SECTIONS: Final = 45
_SHARPEST: Final = 1e-4
"""Least width, as a share of the smallest distance between two settings; below it the curve is a step."""
_LEAST_OVERLAP: Final = 0.5
_RESAMPLES: Final = 100
_QUARTILE: Final = 0.6744897501960817
"""Of the standard normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A transition along x; all in units of x."""

    critical: Estimate
    """Where the share is one half. A bound is infinite where the settings do not limit it."""
    width: Estimate
    """Distance over which the share goes from 1/4 to 3/4; 0 if the settings allow a step."""
    log_likelihood: float
    trials: int
    rising: bool
    link: Link

    def share(self, x: Any) -> Floats:
        """(M,) the fitted share at settings; NaN where nothing limits the curve."""
        z = _in_widths(x, self.critical.value, self.width.value, self.rising)
        if self.link == "logistic":
            return _logistic(2 * math.log(3) * z)
        from scipy.special import ndtr

        return np.asarray(ndtr(2 * _QUARTILE * z), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class ScaledThreshold:
    """A transition whose width depends on the size, with a logistic share."""

    critical: Estimate
    """x_c, in units of x; where it moves, that of the geometric mean of the sizes."""
    inverse_nu: Estimate
    """1 / nu: the width is proportional to L^(-1/nu)."""
    shift: Estimate
    """b in x_c(L) = x_c - b log(L / their geometric mean): x_c is proportional to L^-b where x is a logarithm. Exactly
    0 unless it is fitted."""
    width: Estimate
    """Distance in x from the share 1/4 to 3/4, at the geometric mean of the sizes."""
    quality: float
    """S of the collapse with these exponents; see `Collapse`."""
    size: float
    """The geometric mean of the sizes."""
    rising: bool

    def share(self, x: Any, size: float) -> Floats:
        """(M,) the fitted share at settings of a size; NaN where nothing limits the curve."""
        apart = math.log(size / self.size)
        critical = self.critical.value - self.shift.value * apart
        width = self.width.value * math.exp(-self.inverse_nu.value * apart)
        return _logistic(2 * math.log(3) * _in_widths(x, critical, width, self.rising))


def _in_widths(x: Any, critical: float, width: float, rising: bool) -> Floats:
    """(M,) distances above a critical point in widths, negative where the share falls."""
    above = np.asarray(x, dtype=np.float64) - critical
    with np.errstate(divide="ignore", invalid="ignore"):
        distance: Floats = np.where(above == 0, 0.0, above / width)  # the width of a step is 0
    return distance if rising else -distance


def _logistic(z: Floats) -> Floats:
    from scipy.special import expit

    return np.asarray(expit(z), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """Finite-size scaling."""

    critical: Estimate
    """x_c."""
    inverse_nu: Estimate
    """1 / nu: the width of the transition is proportional to L^(-1/nu)."""
    zeta_over_nu: Estimate
    """Exponent of the height; exactly 0 for a share, unless fitted."""
    quality: float
    """S: about 1 for a collapse within the errors, well above it where there is none."""
    overlap: float
    """Share of the points that lie between points of another size, and so enter S."""


def threshold(
    x: Any, reached: Any, trials: Any, *, rising: bool = True, link: Link = "logistic", level: float = LEVEL
) -> Threshold:
    """The critical point of the share of trials that reach an event.

    The trials are taken as independent. With common seeds along x the interval is for these seeds, not over seeds.

    Args:
        x: (N,) settings; pass the logarithm for an axis that is searched on a logarithmic scale.
        reached: (N,) how many trials reached the event; (N,) `trials`: of how many.
        rising: whether the share rises with x.

    Raises:
        ValueError: other shapes, fewer than two settings, or counts that are not between 0 and the trials.
    """
    position, k, n = (np.asarray(values, dtype=np.float64) for values in (x, reached, trials))
    if position.ndim != 1 or position.shape != k.shape or k.shape != n.shape or len(np.unique(position)) < 2:
        raise ValueError("x, reached and trials: arrays of one length, with at least two settings")
    if not (np.isfinite(position).all() and (k >= 0).all() and (k <= n).all() and (n > 0).all()):
        raise ValueError("reached: from 0 to the number of trials of each setting, which is at least 1")
    curve = _ShareCurve(position if rising else -position, k, n, link)
    best = curve.best()
    critical, width = (curve.profile(best, parameter, level) for parameter in (0, 1))
    if not rising:
        critical = (-critical[0], -critical[2], -critical[1])
    if not 0 < k.sum() < n.sum():  # all beyond, more likely the farther; where the search ended says nothing
        critical = (math.inf if (k.sum() == 0) == rising else -math.inf, *critical[1:])
    return Threshold(
        critical=Estimate(value=critical[0], low=critical[1], high=critical[2], level=level),
        width=Estimate(value=width[0], low=width[1], high=width[2], level=level),
        log_likelihood=-float(best.value[0]),
        trials=int(n.sum()),
        rising=rising,
        link=link,
    )


class _ShareCurve:
    """Likelihood of a rising curve with internal parameters (critical point in units of the span, log slope)."""

    def __init__(self, x: Floats, reached: Floats, trials: Floats, link: Link) -> None:
        self.span = float(np.ptp(x))
        self.low = float(x.min())
        self.x = (x - self.low) / self.span
        self.reached, self.missed = reached, trials - reached
        self.link = link
        # The distance between the shares 1/4 and 3/4, times the slope.
        self.quartiles = 2 * math.log(3) if link == "logistic" else 2 * _QUARTILE
        closest = float(np.diff(np.unique(self.x)).min())
        self.steepest = math.log(self.quartiles / (_SHARPEST * closest))
        self.flattest = math.log(self.quartiles / 1e3)
        self.limits = ((-2.0, 3.0), (self.flattest, self.steepest))

    def loss(self, critical: Floats, log_slope: Floats) -> tuple[Floats, Floats, Floats]:
        """(M,) minus log-likelihood and its derivatives by both parameters."""
        inside = (log_slope > self.flattest) & (log_slope < self.steepest)
        slope = np.exp(np.clip(log_slope, self.flattest, self.steepest))[:, None]
        distance = self.x - critical[:, None]
        z = slope * distance
        if self.link == "logistic":
            yes, no = -np.logaddexp(0, -z), -np.logaddexp(0, z)
            by_z = self.reached * np.exp(no) - self.missed * np.exp(yes)
        else:
            from scipy.special import erfcx, log_ndtr

            yes, no = log_ndtr(z), log_ndtr(-z)
            # Density over distribution function, which does not overflow where the ratio of both does.
            towards, away = (math.sqrt(2 / math.pi) / erfcx(-side / math.sqrt(2)) for side in (z, -z))
            by_z = self.reached * towards - self.missed * away
        value = -(self.reached * yes + self.missed * no).sum(1)
        return value, (by_z * slope).sum(1), np.where(inside, -(by_z * z).sum(1), 0.0)

    def best(self) -> Minima:
        """The most likely curve, as the only row."""
        starts = [[c, math.log(self.quartiles / w)] for c in np.linspace(-0.2, 1.2, 15) for w in (0.02, 0.2, 1.0)]

        def objective(theta: Floats, _problems: Integers) -> tuple[Floats, Floats]:
            value, by_critical, by_slope = self.loss(theta[:, 0], theta[:, 1])
            return value, np.stack([by_critical, by_slope], 1)

        ends = minimise(objective, np.array(starts), tolerance=1e-13)
        first = int(np.argmin(ends.value))
        return Minima(theta=ends.theta[[first]], value=ends.value[[first]], converged=ends.converged[[first]])

    def profile(self, best: Minima, parameter: int, level: float) -> tuple[float, float, float]:
        """A parameter in units of x, and the ends of its interval: twice the loss rises by a chi-squared quantile."""
        from scipy.stats import chi2

        tails(level)
        rise = 0.5 * float(chi2.ppf(level, 1))
        at = float(best.theta[0, parameter])
        limits = self.limits[parameter]
        at = float(np.clip(at, *limits))

        def excess(values: Floats) -> Floats:
            above: Floats = self._profile_loss(values, parameter) - best.value[0] - rise
            return above

        ends = []
        for limit, unlimited in zip(limits, (-math.inf, math.inf), strict=True):
            near, far = at, limit
            for _ in range(_ZOOMS):
                values = np.linspace(near, far, _GRID)
                outside = np.flatnonzero(excess(values) > 0)
                if not len(outside):
                    near = unlimited
                    break
                near, far = float(values[max(outside[0] - 1, 0)]), float(values[outside[0]])
            ends.append(near)
        if parameter == 0:
            at = -math.inf if at <= limits[0] else math.inf if at >= limits[1] else at
            low, value, high = (self.low + self.span * end for end in (ends[0], at, ends[1]))
            return value, low, high
        if excess(np.array([self.steepest]))[0] <= 1e-9 - rise:
            at = math.inf
        low, value, high = (self.span * self.quartiles * math.exp(-end) for end in (ends[1], at, ends[0]))
        return value, low, high

    def _profile_loss(self, values: Floats, parameter: int) -> Floats:
        """(M,) loss at each value of a parameter, minimised over the other one by golden sections.

        The likelihood is concave in the slope and in slope times critical point, so there is one minimum.
        """
        low, high = (np.full(len(values), limit) for limit in self.limits[1 - parameter])
        golden = (math.sqrt(5) - 1) / 2

        def loss(other: Floats) -> Floats:
            pair = (values, other) if parameter == 0 else (other, values)
            return self.loss(*pair)[0]

        left, right = high - golden * (high - low), low + golden * (high - low)
        at_left, at_right = loss(left), loss(right)
        for _ in range(_SECTIONS):
            smaller = at_left < at_right
            low, high = np.where(smaller, low, left), np.where(smaller, right, high)
            left, right = high - golden * (high - low), low + golden * (high - low)
            at_left, at_right = loss(left), loss(right)
        least: Floats = np.minimum(at_left, at_right)
        return least


def scaled_threshold(
    size: Any,
    x: Any,
    reached: Any,
    trials: Any,
    *,
    rising: bool = True,
    moves: bool = False,
    level: float = LEVEL,
    resamples: int = 400,
) -> ScaledThreshold:
    """Critical point and exponent of a share at several sizes, by maximum likelihood.

    The intervals are a parametric bootstrap: counts are drawn from the fitted curve and fitted again.

    Args:
        size: (N,) sizes L, at least two; x: (N,) settings; reached, trials: (N,) counts, as in `threshold`.
        rising: whether the share rises with x.
        moves: whether the critical point depends on the size: fit `ScaledThreshold.shift` too.

    Raises:
        ValueError: see `threshold`; one size.
    """
    L, position, k, n = (np.asarray(values, dtype=np.float64) for values in (size, x, reached, trials))
    if L.ndim != 1 or any(v.shape != L.shape for v in (position, k, n)) or len(np.unique(L)) < 2 or not (L > 0).all():
        raise ValueError("size, x, reached and trials: arrays of one length, with at least two positive sizes")
    if not ((k >= 0).all() and (k <= n).all() and (n > 0).all()) or not 0 < k.sum() < n.sum():
        raise ValueError("reached: from 0 to the number of trials, and neither none nor all of them")
    log_size = np.log(L / np.exp(np.log(L).mean()))
    low, span = float(position.min()), float(np.ptp(position))
    u = (position - low) / span
    sign, quartiles = (1.0 if rising else -1.0), 2 * math.log(3)

    def slope(theta: Floats) -> Floats:
        sharpness: Floats = sign * np.exp(np.clip(theta[:, 1:2] + theta[:, 2:3] * log_size, -20, 20))
        return sharpness

    def logit(theta: Floats) -> Floats:
        moved = theta[:, 3:] * log_size if moves else 0.0
        return np.asarray(slope(theta) * (u - theta[:, :1] + moved), dtype=np.float64)

    def objective_of(counts_BN: Floats) -> Callable[[Floats, Integers], tuple[Floats, Floats]]:
        def objective(theta: Floats, problems: Integers) -> tuple[Floats, Floats]:
            z, yes = logit(theta), counts_BN[problems]
            value = (yes * np.logaddexp(0, -z) + (n - yes) * np.logaddexp(0, z)).sum(1)
            by_z = n * expit(z) - yes
            by_x = by_z * slope(theta)
            by_shift = [(by_x * log_size).sum(1)] * moves
            return value, np.stack([-by_x.sum(1), (by_z * z).sum(1), (by_z * z * log_size).sum(1), *by_shift], 1)

        return objective

    from scipy.special import expit

    starts = [
        [c, math.log(quartiles / w), e, *s]
        for c in np.linspace(0.1, 0.9, 9)
        for w in (0.05, 0.3)
        for e in (0.0, 0.7)
        for s in (((-0.5,), (0.0,), (0.5,)) if moves else ((),))
    ]
    ends = minimise(objective_of(np.tile(k, (len(starts), 1))), np.array(starts))
    best = ends.theta[int(np.argmin(ends.value))]
    random = np.random.default_rng(SEED)
    drawn = random.binomial(n.astype(np.int64), expit(logit(best[None]))[0], size=(resamples, len(n))).astype(
        np.float64
    )
    again = minimise(objective_of(drawn), np.tile(best, (resamples, 1)), tolerance=1e-8).theta
    with np.errstate(over="ignore"):  # a width that nothing limits is infinite
        columns = [
            (
                low + span * theta[:, 0],
                theta[:, 2],
                span * quartiles * np.exp(-theta[:, 1]),
                span * theta[:, 3] if moves else np.zeros(len(theta)),
            )
            for theta in (best[None], again)
        ]
    estimates = []
    for value, values in zip(*columns, strict=True):
        bounds = percentile_interval(values, level)
        estimates.append(Estimate(value=float(value[0]), low=bounds[0], high=bounds[1], level=level))
    rescaled = (position - estimates[0].value + estimates[3].value * log_size) * np.exp(best[2] * log_size)
    return ScaledThreshold(
        critical=estimates[0],
        inverse_nu=estimates[1],
        shift=estimates[3],
        width=estimates[2],
        quality=quality(log_size, rescaled, k / n, share_errors(k, n))[0],
        size=float(np.exp(np.log(L).mean())),
        rising=rising,
    )


def share_interval(reached: Any, trials: Any, *, level: float = LEVEL) -> tuple[Floats, Floats]:
    """(N,) each: the interval of shares by Wilson (1927, J. Am. Stat. Assoc. 22, 209), for independent trials."""
    from scipy.special import ndtri

    k, n = np.asarray(reached, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    z2 = float(ndtri(tails(level)[1])) ** 2
    middle = (k + z2 / 2) / (n + z2)
    half: Floats = np.sqrt(z2 * (k * (n - k) / n + z2 / 4)) / (n + z2)
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


def share_errors(reached: Any, trials: Any) -> Floats:
    """(N,) standard errors of shares that stay positive at 0 and 1: binomial, with a half added to both counts."""
    k, n = np.asarray(reached, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    share = (k + 0.5) / (n + 1)
    errors: Floats = np.sqrt(share * (1 - share) / (n + 1))
    return errors


def collapse(
    size: Any,
    x: Any,
    y: Any,
    error: Any,
    *,
    fit_height: bool = False,
    starts: Sequence[tuple[float, float]] | None = None,
    level: float = LEVEL,
    resamples: int = _RESAMPLES,
) -> Collapse:
    """Critical point and exponents with which the curves of all sizes fall onto one.

    The interval is a parametric bootstrap: y is drawn again from its standard errors, and fitted from the best end.

    Args:
        size: (N,) sizes L, at least two of them; x, y, error: (N,) control parameter, mean, its standard error.
        fit_height: also fit zeta / nu; leave it for a share, whose height does not change.
        starts: pairs (x_c, 1 / nu); by default a grid over the range of x, and 1 / nu from 0 to 2.

    Raises:
        ValueError: other shapes, one size, errors that are not positive, or sizes whose ranges of x do not overlap.
    """
    scaled = [np.asarray(values, dtype=np.float64) for values in (size, x, y, error)]
    L, position, value, spread = scaled
    if L.ndim != 1 or any(values.shape != L.shape for values in scaled) or len(np.unique(L)) < 2:
        raise ValueError("size, x, y and error: arrays of one length, with at least two sizes")
    if not (spread > 0).all() or not (L > 0).all():
        raise ValueError("size and error: positive")
    log_size = np.log(L / np.exp(np.log(L).mean()))
    span = float(np.ptp(position))
    middle = float(position.min())

    def parts(theta: Floats) -> tuple[float, float, float]:
        return middle + span * theta[0], float(theta[1]), float(theta[2]) if fit_height else 0.0

    def quality_of(y_: Floats) -> Callable[[Floats], float]:
        def objective(theta: Floats) -> float:
            critical, inverse, height = parts(theta)
            shape = np.exp(height * log_size)
            return quality(log_size, (position - critical) * np.exp(inverse * log_size), y_ * shape, spread * shape)[0]

        return objective

    from scipy.optimize import minimize

    options = {"xatol": 1e-5, "fatol": 1e-7, "maxiter": 400}
    objective = quality_of(value)
    if starts is None:
        grid = [[c, e] for c in np.linspace(0.05, 0.95, 10) for e in np.linspace(0.0, 2.0, 9)]
    else:
        grid = [[(c - middle) / span, e] for c, e in starts]
    grid = [[*pair, 0.0] if fit_height else pair for pair in grid]
    ranked = sorted(grid, key=lambda theta: objective(np.array(theta)))[:5]
    ends = [minimize(objective, theta, method="Nelder-Mead", options=options) for theta in ranked]
    best = min(ends, key=lambda end: float(end.fun))
    if not math.isfinite(best.fun):
        raise ValueError("x: the ranges of different sizes do not overlap under any scaling")
    random = np.random.default_rng(SEED)
    options |= {"xatol": 1e-3, "fatol": 1e-3}
    drawn = [
        parts(
            minimize(
                quality_of(value + spread * random.standard_normal(len(L))),
                best.x,
                method="Nelder-Mead",
                options=options,
            ).x
        )
        for _ in range(resamples)
    ]
    found = parts(best.x)
    estimates = []
    for index, number in enumerate(found):
        low, high = percentile_interval(np.array([draw[index] for draw in drawn]), level) if drawn else (math.nan,) * 2
        estimates.append(Estimate(value=float(number), low=low, high=high, level=level))
    shape = np.exp(found[2] * log_size)
    rescaled = (position - found[0]) * np.exp(found[1] * log_size)
    return Collapse(
        critical=estimates[0],
        inverse_nu=estimates[1],
        zeta_over_nu=estimates[2],
        quality=float(best.fun),
        overlap=quality(log_size, rescaled, value * shape, spread * shape)[1],
    )


def quality(size: Floats, x: Floats, y: Floats, error: Floats) -> tuple[float, float]:
    """S of scaled points, and the share of points that enter it; inf where these are fewer than half.

    Args:
        size: (N,) labels; x, y, error: (N,) scaled coordinates.
    """
    labels = np.unique(size)
    sums = np.zeros((5, len(x)))
    for label in labels:
        members = np.flatnonzero(size == label)
        members = members[np.argsort(x[members])]
        others = np.flatnonzero(size != label)
        right = np.searchsorted(x[members], x[others], side="right")
        between = (right > 0) & (right < len(members))
        for neighbour in (right[between] - 1, right[between]):
            chosen = members[neighbour]
            weight = error[chosen] ** -2
            terms = [np.ones(len(chosen)), x[chosen], y[chosen], x[chosen] ** 2, x[chosen] * y[chosen]]
            sums[:, others[between]] += weight * np.array(terms)
    k, kx, ky, kxx, kxy = sums
    determinant = k * kxx - kx**2
    usable = determinant > 1e-12 * np.maximum(k * kxx, 1e-300)
    share = float(usable.mean())
    if share < _LEAST_OVERLAP:
        return math.inf, share
    k, kx, ky, kxx, kxy, determinant = (values[usable] for values in (k, kx, ky, kxx, kxy, determinant))
    at = x[usable]
    master = ((kxx * ky - kx * kxy) + at * (k * kxy - kx * ky)) / determinant
    variance = (kxx - 2 * at * kx + at**2 * k) / determinant
    return float(((y[usable] - master) ** 2 / (error[usable] ** 2 + variance)).mean()), share
