"""Expectation propagation for Gaussian-process models with a likelihood that factorises over observations.

The latent function is f = features @ w with w ~ N(0, I). Each observation has one Gaussian site
exp(linear f - precision f^2 / 2) (Minka 2001; Rasmussen and Williams 2006, sec. 3.6). All sites are updated at once,
with damping, so the result does not depend on the order of the observations.

Shapes: n positions, m observations (several may share a position), r features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

from orchestrator.surface.kernel import Floats

Indices = NDArray[np.int64]

_STALLED: Final = 8
"""Updates without progress after which a likelihood's `stalled_tolerance` applies."""
_ALL: Final = slice(None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sites:
    """Gaussian factors exp(linear f - precision f^2 / 2), one per observation."""

    precision: Floats
    """(m,)"""
    linear: Floats
    """(m,)"""


@dataclass(frozen=True, kw_only=True, eq=False)
class TiltedMoments:
    """The likelihood of each observation integrated over its cavity distribution, with derivatives."""

    log_mass: Floats
    first: Floats
    """Derivative of `log_mass` by the cavity mean."""
    second: Floats
    """Second derivative of `log_mass` by the cavity mean."""
    by_parameter: Floats
    """Derivative of `log_mass` by the likelihood's own hyperparameter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Likelihood(ABC):
    """p(observation | f), and how its sites are best updated."""

    at: Indices
    """(m,) position of each observation."""
    weight: Floats
    """(m,) how many equal observations each one stands for."""

    damping: ClassVar[float] = 0.8
    """Share of an update that is applied at first."""
    least_damping: ClassVar[float] = 0.25
    least_precision: ClassVar[float] = 1e-10
    """Smallest precision of a site; negative ones are not allowed."""
    frozen_below: ClassVar[float] = 0.0
    """Sites that moved by less than this share of the tolerance, and hold less than this share of the precision of
    their latent value, are frozen until the others have converged; 0: no site is frozen."""
    stalled_tolerance: ClassVar[float] = 0.0
    """Tolerance that is accepted once updates make no progress. Observations that contradict their neighbours under a
    likelihood that is not log-concave can make the sites oscillate between two solutions."""

    @abstractmethod
    def moments(self, mean: Floats, variance: Floats, rows: slice | Indices = _ALL) -> TiltedMoments:
        """Moments of the observations `rows` under cavity distributions of this mean and variance."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianPosterior:
    """The posterior of f = features @ w, w Gaussian."""

    weights: Floats
    """(r,) posterior mean of w."""
    factor: Floats
    """(r, r) lower Cholesky factor of the posterior precision of w."""
    half: Floats
    """(r, n) half_covariance of the training features."""
    mean: Floats
    """(n,) posterior mean of f."""
    variance: Floats
    """(n,) posterior variance of f."""
    sites: Sites
    log_evidence: float
    by_parameter: float
    """Derivative of `log_evidence` by the likelihood's own hyperparameter."""

    def half_covariance(self, features: Floats) -> Floats:
        """(r, q) columns whose inner products are the posterior covariances of f, for (q, r) features."""
        return np.asarray(solve_triangular(self.factor, features.T, lower=True, check_finite=False))


def propagate(
    features: Floats, likelihood: Likelihood, *, first: Sites | None = None, tolerance: float = 1e-3, rounds: int = 60
) -> GaussianPosterior:
    """The posterior of f = features @ w, w ~ N(0, I), given (n, r) features and the observations of a likelihood.

    Args:
        features: (n, r), one row per position.
        likelihood: The observations; `likelihood.at` refers to rows of `features`.
        first: Sites to start from. They change the result within the tolerance only.
        tolerance: On the change of the latent mean by one site, in posterior standard deviations.
        rounds: Most updates.
    """
    rank = features.shape[1]
    at, weight, least_precision = likelihood.at, likelihood.weight, likelihood.least_precision
    precision = first.precision.copy() if first else np.full(len(at), least_precision)
    linear = first.linear.copy() if first else np.zeros(len(at))
    damping, last, done, least, least_done = likelihood.damping, np.inf, 0, np.inf, 0
    live: slice | Indices = _ALL
    f, own = features, at
    frozen_gram, frozen_pull = np.eye(rank), np.zeros(rank)
    while True:
        # One update of all sites, or of those that are not frozen: of the frozen ones, sums are kept.
        w, old_precision, old_linear = weight[live], precision[live], linear[live]
        row_precision = np.bincount(own, w * old_precision, minlength=len(f))
        gram = frozen_gram + f.T @ (f * row_precision[:, None])
        factor = cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
        half = solve_triangular(factor, f.T, lower=True, check_finite=False)
        variance = np.maximum(np.einsum("rn,rn->n", half, half), 1e-14)
        projected = half @ np.bincount(own, w * old_linear, minlength=len(f))
        if live is not _ALL:
            projected += solve_triangular(factor, frozen_pull, lower=True, check_finite=False)
        mean = half.T @ projected
        f_mean, f_variance = mean[own], variance[own]
        c_variance = 1.0 / np.maximum(1.0 / f_variance - old_precision, 1e-4 / f_variance)
        c_mean = c_variance * (f_mean / f_variance - old_linear)
        m = likelihood.moments(c_mean, c_variance, live)
        new_precision = np.maximum(-m.second / np.maximum(1.0 + m.second * c_variance, 1e-8), least_precision)
        new_linear = m.first + new_precision * (c_mean + c_variance * m.first)
        done += 1
        moves = np.abs((new_linear - old_linear) - (new_precision - old_precision) * f_mean) * np.sqrt(f_variance)
        moved = float(np.max(moves, initial=0.0))
        if moved < least:
            least, least_done = moved, done
        stalled = done - least_done >= _STALLED and moved < likelihood.stalled_tolerance
        ended = moved < tolerance or done >= rounds or stalled
        if ended and live is _ALL:
            break
        if moved > 0.95 * last and damping > likelihood.least_damping:
            damping *= 0.8
        last = moved
        precision[live] += damping * (new_precision - old_precision)
        linear[live] += damping * (new_linear - old_linear)
        if ended:
            live, f, own = _ALL, features, at
            frozen_gram, frozen_pull = np.eye(rank), np.zeros(rank)
        elif live is _ALL and likelihood.frozen_below:
            moving = moves > likelihood.frozen_below * tolerance
            moving |= precision * f_variance > likelihood.frozen_below
            if np.count_nonzero(moving) < len(at) / 2:
                live, still = np.flatnonzero(moving), np.flatnonzero(~moving)
                rows, at_still = np.unique(at[still], return_inverse=True)
                f, w = features[rows], weight[still]
                frozen_gram += f.T @ (f * np.bincount(at_still, w * precision[still])[:, None])
                frozen_pull = f.T @ np.bincount(at_still, w * linear[still])
                rows, own = np.unique(at[live], return_inverse=True)
                f = features[rows]
    c_precision = 1.0 / c_variance
    product = c_precision + precision
    log_site = (
        m.log_mass
        - 0.5 * (c_precision * c_mean + linear) ** 2 / product
        + 0.5 * c_precision * c_mean**2
        + 0.5 * np.log(product * c_variance)
    )
    log_determinant = float(np.log(np.diag(factor)).sum())
    evidence = float((weight * log_site).sum()) + 0.5 * float(projected @ projected) - log_determinant
    return GaussianPosterior(
        weights=np.asarray(solve_triangular(factor, projected, lower=True, trans=1, check_finite=False)),
        factor=factor,
        half=half,
        mean=mean,
        variance=variance,
        sites=Sites(precision=precision, linear=linear),
        log_evidence=evidence,
        by_parameter=float((weight * m.by_parameter).sum()),
    )
