"""Gaussian-process regression on trials: noisy, replicated, censored, with outliers.

Matern-5/2 with one lengthscale per axis, plus an unknown constant. Lengthscales, outputscale and noise maximise the
marginal likelihood times weak log-normal priors (Rasmussen and Williams 2006, ch. 5) on a subset of the positions that
depends on the positions alone. Then every trial enters, through low-rank features of the covariance where there are
many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.optimize import OptimizeResult, minimize
from scipy.spatial import cKDTree
from scipy.special import ndtr

from orchestrator.surface.base import Points
from orchestrator.surface.ep import GaussianPosterior, Likelihood, Sites, TiltedMoments, propagate
from orchestrator.surface.kernel import Floats, InducingFeatures, inducing_features, matern52_gradients

EXACT: Final = 0
AT_LEAST: Final = 1
AT_MOST: Final = -1

_LOG_2PI: Final = float(np.log(2 * np.pi))
_JITTER: Final = 1e-6
_CHUNK: Final = 8192
_NEIGHBOURS: Final = 24
_NOISE_COUNT: Final = 8.0
"""How many neighbours the overall noise counts for in the estimate of the local noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CensoredLikelihood(Likelihood):
    """A value y = f + s e (e standard normal), or a bound: f + s e is at least, or at most, y (Tobit's likelihood).

    A share of the observations are outliers, independent of f: such a value lies anywhere in a range, and such a bound
    holds with probability one half (Kuss 2006 for outliers in expectation propagation).
    """

    kind: NDArray[np.int64]
    """(m,) EXACT, AT_LEAST or AT_MOST."""
    value: Floats
    """(m,) the value or the bound."""
    noise_factor: Floats
    """(m,) factor on the noise s, where some trials are noisier than others."""
    noise: float = 1.0
    """Standard deviation s."""
    outlier_fraction: float = 0.0
    outlier_range: float = 1.0

    def moments(self, mean: Floats, variance: Floats, rows: slice | NDArray[np.int64] = slice(None)) -> TiltedMoments:
        """See `Likelihood.moments`; in closed form, the hyperparameter is log s."""
        kind, good = self.kind[rows], 1 - self.outlier_fraction
        own = (self.noise * self.noise_factor[rows]) ** 2
        total = variance + own
        away = self.value[rows] - mean
        # Of a value.
        with np.errstate(under="ignore"):
            density = good * np.exp(-0.5 * (away**2 / total + np.log(total) + _LOG_2PI))
        mass_v = density + self.outlier_fraction / self.outlier_range + 1e-300
        share = density / mass_v
        first_v = share * away / total
        curvature = (away / total) ** 2 - 1 / total
        # Of a bound.
        sign = np.where(kind >= 0, 1.0, -1.0)
        root = np.sqrt(total)
        t = -sign * away / root
        with np.errstate(under="ignore"):
            slope = good * np.exp(-0.5 * (t * t + _LOG_2PI))
        # The smallest share of outliers keeps the ratio finite far in the tail.
        mass_b = max(0.5 * self.outlier_fraction, 1e-12) + good * ndtr(t)
        ratio = slope / mass_b
        exact = kind == EXACT
        return TiltedMoments(
            log_mass=np.log(np.where(exact, mass_v, mass_b)),
            first=np.where(exact, first_v, sign * ratio / root),
            second=np.where(exact, share * curvature - first_v**2, -ratio * (t + ratio) / total),
            by_parameter=np.where(exact, share * own * curvature, -ratio * t * own / total),
        )


@dataclass(frozen=True, kw_only=True)
class LogNormal:
    """A weak prior of a positive number."""

    median: float
    sd: float
    """Standard deviation of its logarithm."""

    def log_density(self, log_value: float) -> tuple[float, float]:
        """The log density at exp(log_value), up to a constant, and its derivative by log_value."""
        z = (log_value - float(np.log(self.median))) / self.sd
        return -0.5 * z * z, -z / self.sd


@dataclass(frozen=True, kw_only=True)
class Model:
    """Priors and settings of the regression, in units of the values."""

    lengthscale: LogNormal = field(default_factory=lambda: LogNormal(median=0.35, sd=0.7))
    """Of each axis, in box widths."""
    outputscale: LogNormal = field(default_factory=lambda: LogNormal(median=1.0, sd=0.7))
    """Standard deviation of the function."""
    noise: LogNormal = field(default_factory=lambda: LogNormal(median=0.2, sd=1.2))
    """Standard deviation of one trial about the function."""
    mean_sd: float = 1.0
    """Standard deviation of the unknown mean constant; 0: the mean is zero."""
    fixed_noise: bool = False
    """Whether the noise is `noise.median` and is not learned."""
    outlier_fraction: float = 0.0
    outlier_range: float = 1.0
    """The range over which the value of an outlier lies."""
    heteroscedastic: bool = False
    """Whether the noise may depend on the position."""
    rank: int = 400
    """Most features."""
    subset: int = 200
    """Most positions that the hyperparameters are learned from."""
    starts: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    """Where the search for them starts: factors on the medians of outputscale and noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Observations:
    """Observations at distinct positions, in an order that depends on their content alone."""

    x: Points
    """(n, d)"""
    likelihood: CensoredLikelihood

    @staticmethod
    def of(x: Points, kind: NDArray[np.int64], value: Floats) -> Observations:
        """From trials (m, d), their kinds and values; trials without a finite value are left out."""
        keep = np.isfinite(value) & np.isfinite(x).all(axis=1)
        kind, value = kind[keep], value[keep]
        positions, at = np.unique(x[keep], axis=0, return_inverse=True)
        at = at.reshape(-1).astype(np.int64)
        order = np.lexsort((value, kind, at))
        ones = np.ones(len(order))
        likelihood = CensoredLikelihood(
            at=at[order], weight=ones, kind=kind[order], value=value[order], noise_factor=ones
        )
        return Observations(x=positions, likelihood=likelihood)

    def __len__(self) -> int:
        return len(self.likelihood.at)

    def subset(self, most: int) -> Observations:
        """At most `most` positions: a random choice with a fixed seed, so a function of the positions alone."""
        n = len(self.x)
        if n <= most:
            return self
        chosen = np.sort(np.random.default_rng(n).choice(n, most, replace=False)).astype(np.int64)
        new, seen = np.full(n, -1, dtype=np.int64), self.likelihood
        new[chosen] = np.arange(most)
        keep = new[seen.at] >= 0
        arrays = {k: getattr(seen, k)[keep] for k in ("weight", "kind", "value", "noise_factor")}
        return Observations(x=self.x[chosen], likelihood=replace(seen, at=new[seen.at[keep]], **arrays))


@dataclass(frozen=True, kw_only=True, eq=False)
class GpRegression:
    """The fitted regression."""

    lengthscale: Floats
    """(d,)"""
    outputscale: float
    mean_sd: float
    data: Observations
    """What it was fitted to, with the learned noise."""
    posterior: GaussianPosterior
    inducing: InducingFeatures

    @property
    def noise(self) -> float:
        """Standard deviation of one trial about the function."""
        return self.data.likelihood.noise

    def features(self, x: Points) -> Floats:
        """(q, r) features of (q, d) points; the posterior of the function is that of their inner product with w."""
        return _with_constant(self.inducing.at(x), self.outputscale, self.mean_sd)

    def chunks(self, x: Points) -> Iterator[tuple[slice, Floats]]:
        """The features of many points, a bounded number at a time."""
        for first in range(0, len(x), _CHUNK):
            rows = slice(first, min(first + _CHUNK, len(x)))
            yield rows, self.features(x[rows])

    def moments(self, x: Points) -> tuple[Floats, Floats]:
        """Mean and variance of the function (not of a trial) at (q, d) points, each (q,)."""
        mean, variance = np.empty(len(x)), np.empty(len(x))
        prior = self.outputscale**2 + self.mean_sd**2
        for rows, phi in self.chunks(x):
            mean[rows] = phi @ self.posterior.weights
            half = self.posterior.half_covariance(phi)
            residual = np.maximum(prior - np.einsum("qr,qr->q", phi, phi), 0.0)
            variance[rows] = np.einsum("rq,rq->q", half, half) + residual
        return mean, variance

    def z_scores(self, x: Points) -> Floats:
        """(q,) posterior mean over standard deviation."""
        mean, variance = self.moments(x)
        return np.asarray(mean / np.sqrt(variance))

    def noise_at(self, x: Points) -> Floats:
        """(q,) standard deviation of one trial about the function: that of the nearest trial."""
        seen = self.data.likelihood
        if (seen.noise_factor == 1.0).all():
            return np.full(len(x), self.noise)
        factor = np.ones(len(self.data.x))
        factor[seen.at] = seen.noise_factor
        _, near = cKDTree(self.data.x / self.lengthscale).query(x / self.lengthscale)
        return np.asarray(self.noise * factor[near])

    def sample_weights(self, count: int, seed: int) -> Floats:
        """(r, count) posterior samples of w; `features(x) @ weights` are function values at any points."""
        z = np.random.default_rng(seed).standard_normal((len(self.posterior.weights), count))
        drawn = solve_triangular(self.posterior.factor, z, lower=True, trans=1, check_finite=False)
        return np.asarray(self.posterior.weights[:, None] + drawn)


def _with_constant(correlated: Floats, outputscale: float, mean_sd: float) -> Floats:
    """Features of the covariance outputscale^2 k + mean_sd^2."""
    out = np.empty((len(correlated), correlated.shape[1] + 1))
    np.multiply(correlated, outputscale, out=out[:, :-1])
    out[:, -1] = mean_sd
    return out


@dataclass(kw_only=True, eq=False)
class Objective:
    """Minus the log posterior of (log lengthscales, log outputscale, log noise), and its gradient."""

    data: Observations
    model: Model
    tolerance: float = 1e-3
    rounds: int = 25
    sites: Sites | None = None
    """Those of the last evaluation, from which the next one starts."""

    def __call__(self, theta: Floats) -> tuple[float, Floats]:
        x, model = self.data.x, self.model
        n, d = x.shape
        lengthscale, outputscale = np.exp(theta[:d]), float(np.exp(theta[d]))
        k, by_lengthscale = matern52_gradients(x, lengthscale)
        k *= outputscale**2
        gram = k + model.mean_sd**2
        gram[np.diag_indices(n)] += _JITTER * outputscale**2
        try:
            features = np.tril(cholesky(gram, lower=True, overwrite_a=True, check_finite=False))
            likelihood = _likelihood(self.data, model, theta)
            got = propagate(features, likelihood, first=self.sites, tolerance=self.tolerance, rounds=self.rounds)
        except LinAlgError:
            return 1e10, np.zeros_like(theta)
        self.sites = got.sites
        precision = np.bincount(likelihood.at, weights=got.sites.precision, minlength=n)
        alpha = np.bincount(likelihood.at, weights=got.sites.linear, minlength=n) - precision * got.mean
        covariance = got.half.T @ got.half
        # d log Z / d K at the fixed point of the sites: (alpha alpha' - (K + T^-1)^-1) / 2.
        by_covariance = np.outer(alpha, alpha) + precision[:, None] * covariance * precision[None, :]
        by_covariance[np.diag_indices(n)] -= precision
        gradient = np.empty_like(theta)
        for axis in range(d):
            gradient[axis] = 0.5 * outputscale**2 * float(np.vdot(by_covariance, by_lengthscale[axis]))
        gradient[d] = float(np.vdot(by_covariance, k))
        if not model.fixed_noise:
            gradient[d + 1] = got.by_parameter
        total = got.log_evidence
        for i, prior in enumerate(_priors(model, d)):
            log_density, slope = prior.log_density(float(theta[i]))
            total += log_density
            gradient[i] += slope
        return -total, -gradient


def _priors(model: Model, d: int) -> list[LogNormal]:
    return [model.lengthscale] * d + [model.outputscale] + ([] if model.fixed_noise else [model.noise])


def _likelihood(data: Observations, model: Model, theta: Floats) -> CensoredLikelihood:
    noise = model.noise.median if model.fixed_noise else float(np.exp(theta[-1]))
    fraction, width = model.outlier_fraction, model.outlier_range
    return replace(data.likelihood, noise=noise, outlier_fraction=fraction, outlier_range=width)


def fit(data: Observations, model: Model) -> GpRegression:
    """The posterior given at least one observation."""
    first = _fit(data, model, None)
    if not model.heteroscedastic or len(data) < _NEIGHBOURS:
        return first
    likelihood = replace(data.likelihood, noise_factor=_noise_factors(first))
    return _fit(replace(data, likelihood=likelihood), model, first)


def _fit(data: Observations, model: Model, near: GpRegression | None) -> GpRegression:
    d = data.x.shape[1]
    priors = _priors(model, d)
    medians = [p.median for p in priors]
    if near is None:
        factors = [[1.0] * d + list(start[: len(priors) - d]) for start in model.starts]
        firsts = [np.log(np.multiply(medians, factor)) for factor in factors]
    else:
        firsts = [np.log([*near.lengthscale, near.outputscale, near.noise][: len(priors)])]
    # Longer lengthscales are indistinguishable from infinity; shorter ones cannot be identified from a few trials.
    bounds = [(np.log(0.01), np.log(20.0))] * d
    bounds += [(np.log(p.median) - 5 * p.sd, np.log(p.median) + 5 * p.sd) for p in priors[d:]]
    subset = data.subset(model.subset)

    def search(start: Floats, steps: int) -> OptimizeResult:
        options = {"maxiter": steps, "maxfun": steps + 10, "ftol": 1e-5, "gtol": 1e-2}
        objective = Objective(data=subset, model=model)
        return minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)

    # A few steps from each start, then to the end from the best one.
    start = firsts[0]
    if len(firsts) > 1:
        start = min((search(first, 8) for first in firsts), key=lambda got: float(got.fun)).x
    theta = np.asarray(search(start, 30).x, dtype=np.float64)
    lengthscale, outputscale = np.exp(theta[:d]), float(np.exp(theta[d]))
    likelihood = _likelihood(data, model, theta)
    # Few positions: practically exact. Many: what the features leave out is small compared with the noise of a trial.
    few = len(data.x) <= model.subset
    residual = 1e-6 if few else float(np.clip(0.05 * (likelihood.noise / outputscale) ** 2, 1e-6, 1e-3))
    inducing = inducing_features(data.x, lengthscale, rank=model.rank, residual=residual)
    return GpRegression(
        lengthscale=lengthscale,
        outputscale=outputscale,
        mean_sd=model.mean_sd,
        data=replace(data, likelihood=likelihood),
        posterior=propagate(_with_constant(inducing.train, outputscale, model.mean_sd), likelihood),
        inducing=inducing,
    )


def _noise_factors(first: GpRegression) -> Floats:
    """(m,) factors on the noise: the local median of squared residuals over the overall noise variance, shrunk towards
    1 in its logarithm.

    The median is robust to outliers; 0.4549 is the median of a squared standard normal.
    """
    seen, x = first.data.likelihood, first.data.x / first.lengthscale
    exact = np.flatnonzero(seen.kind == EXACT)
    if len(exact) < _NEIGHBOURS:
        return seen.noise_factor
    at = seen.at[exact]
    variance = first.noise**2
    # A residual at a fitted point is smaller than the noise by its own leverage.
    leverage = np.minimum(first.posterior.variance[at] / variance, 0.9)
    squared = (seen.value[exact] - first.posterior.mean[at]) ** 2 / (variance * (1 - leverage))
    _, near = cKDTree(x[at]).query(x[seen.at], k=_NEIGHBOURS)
    local = np.clip(np.median(squared[near], axis=1) / 0.4549, 0.01, 100.0)
    return np.asarray(local ** (0.5 * _NEIGHBOURS / (_NEIGHBOURS + _NOISE_COUNT)))
