"""Gaussian-process regression on trials: noisy, replicated, censored, some of them spoilt.

Matern-5/2 with a length scale for each axis, plus an unknown constant. Length scales, amplitude and noise maximise the
evidence times weak log-normal priors (Rasmussen and Williams 2006, ch. 5) on a subset of the positions that depends on
the positions alone; then every trial enters, through a low-rank basis of the covariance where there are many.
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

from orchestrator.surface.base import Points
from orchestrator.surface.kernel import Basis, Floats, basis, matern52_slopes
from orchestrator.surface.regression_ep import EXACT, Noise, Observed, Posterior, Sites, propagate

_JITTER: Final = 1e-6
_CHUNK: Final = 8192
_NEIGHBOURS: Final = 24
_BELIEVED: Final = 8.0
"""How many neighbours the overall noise counts as, where the local noise is looked for."""


@dataclass(frozen=True, kw_only=True)
class LogNormal:
    """A weak prior of a positive number."""

    median: float
    spread: float
    """Standard deviation of its logarithm."""

    def slope(self, log_value: float) -> tuple[float, float]:
        """The log density at exp(log_value), up to a constant, and its derivative by log_value."""
        z = (log_value - float(np.log(self.median))) / self.spread
        return -0.5 * z * z, -z / self.spread


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is assumed before any trial, in units of the values."""

    length: LogNormal = field(default_factory=lambda: LogNormal(median=0.35, spread=0.7))
    """Of each length scale, in box widths."""
    amplitude: LogNormal = field(default_factory=lambda: LogNormal(median=1.0, spread=0.7))
    noise: LogNormal = field(default_factory=lambda: LogNormal(median=0.2, spread=1.2))
    constant: float = 1.0
    """Standard deviation of the unknown constant; 0: the mean is zero."""
    noise_known: bool = False
    """Whether the noise is `noise.median` and is not learned."""
    spoilt: float = 0.0
    """Share of the observations that say nothing."""
    spoilt_spread: float = 1.0
    """The range over which a spoilt number lies."""
    uneven: bool = False
    """Whether the noise may differ from place to place."""
    rank: int = 400
    """Most features of the basis."""
    subset: int = 200
    """Most positions that length scales, amplitude and noise are learned from."""
    starts: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    """Where the search for them starts: factors on the medians of amplitude and noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Observations at distinct positions, in an order that depends on nothing but themselves."""

    x: Points
    """(n, d)"""
    seen: Observed


def sample(x: Points, kind: NDArray[np.int64], value: Floats) -> Sample:
    """Trials (m, d), their kinds and values; one without a finite value is left out. Equal rows become replicates."""
    keep = np.isfinite(value) & np.isfinite(x).all(axis=1)
    positions, at = np.unique(x[keep], axis=0, return_inverse=True)
    at = at.reshape(-1).astype(np.int64)
    order = np.lexsort((value[keep], kind[keep], at))
    seen = Observed(at=at[order], kind=kind[keep][order], value=value[keep][order], scale=np.ones(len(order)))
    return Sample(x=positions, seen=seen)


@dataclass(frozen=True, kw_only=True, eq=False)
class Latent:
    """A Gaussian belief of a function over the box."""

    scales: Floats
    """(d,) length scales."""
    amplitude: float
    constant: float
    noise: Noise
    data: Sample
    """What it was fitted to, with the learned factors on the noise."""
    posterior: Posterior
    _basis: Basis

    def features(self, x: Points) -> Floats:
        """(q, r) features of (q, d) points; the posterior of the function is that of their inner product with w."""
        return _features(self._basis.at(x), self.amplitude, self.constant)

    def chunks(self, x: Points) -> Iterator[tuple[slice, Floats]]:
        """The features of many points, a bounded number at a time."""
        for first in range(0, len(x), _CHUNK):
            rows = slice(first, min(first + _CHUNK, len(x)))
            yield rows, self.features(x[rows])

    def moments(self, x: Points) -> tuple[Floats, Floats]:
        """Mean and variance of the function (not of a trial) at (q, d) points, each (q,)."""
        mean, variance = np.empty(len(x)), np.empty(len(x))
        prior = self.amplitude**2 + self.constant**2
        for rows, phi in self.chunks(x):
            mean[rows] = phi @ self.posterior.weights
            spread = self.posterior.spread(phi)
            lost = np.maximum(prior - np.einsum("qr,qr->q", phi, phi), 0.0)
            variance[rows] = np.einsum("rq,rq->q", spread, spread) + lost
        return mean, variance

    def noise_at(self, x: Points) -> Floats:
        """(q,) standard deviation of one trial about the function: that of the nearest trial that was seen."""
        if (self.data.seen.scale == 1.0).all():
            return np.full(len(x), self.noise.std)
        factor = np.ones(len(self.data.x))
        factor[self.data.seen.at] = self.data.seen.scale
        _, near = cKDTree(self.data.x / self.scales).query(x / self.scales)
        return np.asarray(self.noise.std * factor[near])

    def weights(self, count: int, seed: int) -> Floats:
        """(r, count) draws of w: functions drawn from the belief, `features(x) @ weights` at any points."""
        z = np.random.default_rng(seed).standard_normal((len(self.posterior.weights), count))
        drawn = solve_triangular(self.posterior.factor, z, lower=True, trans=1, check_finite=False)
        return np.asarray(self.posterior.weights[:, None] + drawn)


def _features(correlated: Floats, amplitude: float, constant: float) -> Floats:
    """Features of the covariance amplitude^2 k + constant^2."""
    out = np.empty((len(correlated), correlated.shape[1] + 1))
    np.multiply(correlated, amplitude, out=out[:, :-1])
    out[:, -1] = constant
    return out


@dataclass(kw_only=True, eq=False)
class _Objective:
    """Minus the log posterior of (log length scales, log amplitude, log noise), and its gradient."""

    data: Sample
    model: Model
    sites: Sites | None = None
    """Those of the last evaluation: where the next one starts."""

    def __call__(self, theta: Floats) -> tuple[float, Floats]:
        x, model = self.data.x, self.model
        n, d = x.shape
        scales, amplitude = np.exp(theta[:d]), float(np.exp(theta[d]))
        k, slopes = matern52_slopes(x, scales)
        k *= amplitude**2
        gram = k + model.constant**2
        gram[np.diag_indices(n)] += _JITTER * amplitude**2
        try:
            features = cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
            noise = _noise(model, theta[d + 1 :])
            got = propagate(np.tril(features), self.data.seen, noise, first=self.sites, rounds=25)
        except LinAlgError:
            return 1e10, np.zeros_like(theta)
        self.sites = got.sites
        at = self.data.seen.at
        precision = np.bincount(at, weights=got.sites.precision, minlength=n)
        linear = np.bincount(at, weights=got.sites.linear, minlength=n)
        alpha = linear - precision * got.mean
        covariance = got.half.T @ got.half
        # d log Z / d K at fixed sites, where their updates rest: (alpha alpha' - (K + T^-1)^-1) / 2.
        pressure = np.outer(alpha, alpha) + precision[:, None] * covariance * precision[None, :]
        pressure[np.diag_indices(n)] -= precision
        gradient = np.empty_like(theta)
        for axis in range(d):
            gradient[axis] = 0.5 * amplitude**2 * float(np.vdot(pressure, slopes[axis]))
        gradient[d] = float(np.vdot(pressure, k))
        if not model.noise_known:
            gradient[d + 1] = got.by_noise
        total = got.log_evidence
        for i, prior in enumerate(_priors(model, d)):
            log_density, slope = prior.slope(float(theta[i]))
            total += log_density
            gradient[i] += slope
        return -total, -gradient


def _priors(model: Model, d: int) -> list[LogNormal]:
    return [model.length] * d + [model.amplitude] + ([] if model.noise_known else [model.noise])


def _noise(model: Model, learned: Floats) -> Noise:
    std = model.noise.median if model.noise_known else float(np.exp(learned[0]))
    return Noise(std=std, spoilt=model.spoilt, spread=model.spoilt_spread)


def _subset(data: Sample, most: int) -> Sample:
    """At most `most` positions: a random choice with a fixed seed, so a function of the positions alone."""
    n = len(data.x)
    if n <= most:
        return data
    chosen = np.sort(np.random.default_rng(n).choice(n, most, replace=False)).astype(np.int64)
    return Sample(x=data.x[chosen], seen=data.seen.only(chosen))


def fit(data: Sample, model: Model) -> Latent:
    """The belief after `data`, of at least one observation."""
    latent = _fit(data, model, None)
    if not model.uneven or len(data.seen) < _NEIGHBOURS:
        return latent
    uneven = replace(data, seen=replace(data.seen, scale=_unevenness(latent)))
    return _fit(uneven, model, latent)


def _fit(data: Sample, model: Model, near: Latent | None) -> Latent:
    d = data.x.shape[1]
    priors = _priors(model, d)
    medians = [p.median for p in priors]
    if near is None:
        factors = [[1.0] * d + list(start[: len(priors) - d]) for start in model.starts]
        firsts = [np.log(np.multiply(medians, factor)) for factor in factors]
    else:
        firsts = [np.log([*near.scales, near.amplitude, near.noise.std][: len(priors)])]
    # Nobody's box is longer than 20 of its axes, and no curve can be told that turns within a hundredth of it.
    bounds = [(np.log(0.01), np.log(20.0))] * d
    bounds += [(np.log(p.median) - 5 * p.spread, np.log(p.median) + 5 * p.spread) for p in priors[d:]]
    subset = _subset(data, model.subset)

    def search(start: Floats, steps: int) -> OptimizeResult:
        return minimize(
            _Objective(data=subset, model=model),
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": steps, "maxfun": steps + 10, "ftol": 1e-5, "gtol": 1e-2},
        )

    # Several starts go a little way each, and the best one on.
    start = firsts[0]
    if len(firsts) > 1:
        start = min((search(first, 8) for first in firsts), key=lambda got: float(got.fun)).x
    found = search(start, 30)
    theta = np.asarray(found.x, dtype=np.float64)
    scales, amplitude = np.exp(theta[:d]), float(np.exp(theta[d]))
    noise = _noise(model, theta[d + 1 :])
    # Few positions: as good as exact. Many: what the basis leaves out is small beside the noise of a trial.
    few = len(data.x) <= model.subset
    residual = 1e-6 if few else float(np.clip(0.05 * (noise.std / amplitude) ** 2, 1e-6, 1e-3))
    spanned = basis(data.x, scales, rank=model.rank, residual=residual)
    posterior = propagate(_features(spanned.features, amplitude, model.constant), data.seen, noise, rounds=60)
    return Latent(
        scales=scales,
        amplitude=amplitude,
        constant=model.constant,
        noise=noise,
        data=data,
        posterior=posterior,
        _basis=spanned,
    )


def _unevenness(latent: Latent) -> Floats:
    """(m,) factors on the noise: the local median of squared residuals against the overall noise, shrunk towards 1
    in its logarithm.

    The median makes one outlier no noise of its neighbourhood; 0.4549 is the median of a squared standard normal.
    """
    seen, x = latent.data.seen, latent.data.x / latent.scales
    exact = np.flatnonzero(seen.kind == EXACT)
    if len(exact) < _NEIGHBOURS:
        return seen.scale
    at = seen.at[exact]
    variance = latent.noise.std**2
    # A residual at a fitted point is smaller than the noise by its own leverage.
    leverage = np.minimum(latent.posterior.variance[at] / variance, 0.9)
    squared = (seen.value[exact] - latent.posterior.mean[at]) ** 2 / (variance * (1 - leverage))
    _, near = cKDTree(x[at]).query(x[seen.at], k=_NEIGHBOURS)
    local = np.clip(np.median(squared[near], axis=1) / 0.4549, 0.01, 100.0)
    return np.asarray(local ** (0.5 * _NEIGHBOURS / (_NEIGHBOURS + _BELIEVED)))
