"""Expectation propagation for a latent function that is seen with noise, or only known to lie above or below a bound.

One observation of the latent value f is a number y = f + s e (e standard normal), or the news that f + s e is at
least, or at most, y: Tobit's censored likelihood. A share of the observations is spoilt and says nothing of f: a
number is then anywhere in a range, a bound holds or not with equal chance (Opper and Winther 2000 for the method, Kuss
2006 for its use with outliers). All sites are updated at once, so that the order of the observations is irrelevant.

Shapes: n positions, m observations (replicates of a position share its latent value), r features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.special import ndtr

from orchestrator.surface.kernel import Floats

EXACT: Final = 0
AT_LEAST: Final = 1
AT_MOST: Final = -1

_DAMPING: Final = 0.8
_LOG_2PI: Final = float(np.log(2 * np.pi))
_SMALL: Final = 1e-10


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """What was seen, each row one trial."""

    at: NDArray[np.int64]
    """(m,) row of the position."""
    kind: NDArray[np.int64]
    """(m,) EXACT, AT_LEAST or AT_MOST."""
    value: Floats
    """(m,) the number or the bound."""
    scale: Floats
    """(m,) factor on the noise s, where some trials are noisier than others."""

    def __len__(self) -> int:
        return len(self.at)

    def only(self, positions: NDArray[np.int64]) -> Observed:
        """What was seen at these positions, which are renumbered 0, 1, ... in the order given."""
        new = np.full(int(self.at.max(initial=-1)) + 1, -1, dtype=np.int64)
        new[positions] = np.arange(len(positions))
        keep = np.flatnonzero(new[self.at] >= 0)
        return Observed(at=new[self.at[keep]], kind=self.kind[keep], value=self.value[keep], scale=self.scale[keep])


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How an observation differs from the latent value."""

    std: float
    """s"""
    spoilt: float = 0.0
    """The share of observations that say nothing."""
    spread: float = 1.0
    """The range over which a spoilt number lies."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tilted:
    """Each observation against its cavity: the log mass and its derivatives by the cavity's mean and by log s."""

    log_mass: Floats
    first: Floats
    second: Floats
    by_noise: Floats


def _tilted(seen: Observed, mean: Floats, variance: Floats, noise: Noise) -> _Tilted:
    """Moments in closed form; `mean` and `variance` are the cavities', (m,)."""
    own = (noise.std * seen.scale) ** 2
    total = variance + own
    exact = seen.kind == EXACT
    away = seen.value - mean
    # A number.
    with np.errstate(under="ignore"):
        density = (1 - noise.spoilt) * np.exp(-0.5 * (away**2 / total + np.log(total) + _LOG_2PI))
    mass_n = density + noise.spoilt / noise.spread + 1e-300
    share = density / mass_n
    first_n = share * away / total
    second_n = share * ((away / total) ** 2 - 1 / total) - first_n**2
    noise_n = share * own * ((away / total) ** 2 - 1 / total)
    # A bound.
    sign = np.where(seen.kind >= 0, 1.0, -1.0)
    root = np.sqrt(total)
    t = -sign * away / root
    with np.errstate(under="ignore"):
        slope = (1 - noise.spoilt) * np.exp(-0.5 * (t * t + _LOG_2PI))
    # Half of the spoilt bounds hold by chance; the smallest share keeps the ratio finite far in the tail.
    mass_b = max(0.5 * noise.spoilt, 1e-12) + (1 - noise.spoilt) * ndtr(t)
    ratio = slope / mass_b
    return _Tilted(
        log_mass=np.log(np.where(exact, mass_n, mass_b)),
        first=np.where(exact, first_n, sign * ratio / root),
        second=np.where(exact, second_n, -ratio * (t + ratio) / total),
        by_noise=np.where(exact, noise_n, -ratio * t * own / total),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Sites:
    """The Gaussian factors that stand for one observation each: exp(linear f - precision f^2 / 2)."""

    precision: Floats
    """(m,)"""
    linear: Floats
    """(m,)"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Posterior:
    """f = features @ w with w Gaussian."""

    weights: Floats
    """(r,) mean of w."""
    factor: Floats
    """(r, r) lower Cholesky factor of w's precision."""
    half: Floats
    """(r, n) columns whose inner products are the posterior covariances of f between positions."""
    mean: Floats
    """(n,) of f."""
    variance: Floats
    """(n,) of f."""
    sites: Sites
    log_evidence: float
    by_noise: float
    """Derivative of the log evidence by log s."""
    rounds: int
    """Updates of the sites until nothing moved."""

    def spread(self, features: Floats) -> Floats:
        """(r, q) columns whose inner products are posterior covariances, for (q, r) features."""
        return np.asarray(solve_triangular(self.factor, features.T, lower=True, check_finite=False))


def propagate(
    features: Floats,
    seen: Observed,
    noise: Noise,
    *,
    first: Sites | None = None,
    tolerance: float = 1e-3,
    rounds: int = 40,
) -> Posterior:
    """The posterior of f = features @ w, w ~ N(0, I), given (n, r) features and what was seen at the n positions.

    `tolerance` is on the mean that one site would move, in posterior standard deviations. `first` are sites to start
    from; the result depends on them within the tolerance only.
    """
    n, rank = features.shape
    at = seen.at
    start = first or Sites(precision=np.full(len(seen), _SMALL), linear=np.zeros(len(seen)))
    precision, linear = start.precision.copy(), start.linear.copy()
    damping, last, done = _DAMPING, np.inf, 0
    gaussian = noise.spoilt == 0.0 and not (seen.kind != EXACT).any()
    while True:
        weight = np.bincount(at, weights=precision, minlength=n)
        pull = np.bincount(at, weights=linear, minlength=n)
        gram = features.T @ (features * weight[:, None])
        gram[np.diag_indices(rank)] += 1.0
        factor = cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
        half = solve_triangular(factor, features.T, lower=True, check_finite=False)
        variance = np.maximum(np.einsum("rn,rn->n", half, half), 1e-14)
        projected = half @ pull
        mean = half.T @ projected
        own_variance, own_mean = variance[at], mean[at]
        cavity_variance = 1.0 / np.maximum(1.0 / own_variance - precision, 1e-4 / own_variance)
        cavity_mean = cavity_variance * (own_mean / own_variance - linear)
        tilted = _tilted(seen, cavity_mean, cavity_variance, noise)
        rest = np.maximum(1.0 + tilted.second * cavity_variance, 1e-8)
        # A number that looks spoilt has a site of negative precision: it then says nothing but its mean.
        new_precision = np.maximum(-tilted.second / rest, _SMALL)
        new_linear = tilted.first + new_precision * (cavity_mean + cavity_variance * tilted.first)
        done += 1
        moved = float(
            np.max(
                np.abs((new_linear - linear) - (new_precision - precision) * own_mean) * np.sqrt(own_variance),
                initial=0.0,
            )
        )
        if moved < tolerance or done >= rounds:
            break
        if gaussian:
            # The sites are the likelihood itself: exact after one full step.
            precision, linear = new_precision, new_linear
            continue
        if moved > 0.95 * last and damping > 0.25:
            damping *= 0.8
        last = moved
        precision += damping * (new_precision - precision)
        linear += damping * (new_linear - linear)
    cavity_precision = 1.0 / cavity_variance
    product = cavity_precision + precision
    constant = (
        tilted.log_mass
        - 0.5 * (cavity_precision * cavity_mean + linear) ** 2 / product
        + 0.5 * cavity_precision * cavity_mean**2
        + 0.5 * np.log(product * cavity_variance)
    )
    evidence = float(constant.sum()) + 0.5 * float(projected @ projected) - float(np.log(np.diag(factor)).sum())
    return Posterior(
        weights=np.asarray(solve_triangular(factor, projected, lower=True, trans=1, check_finite=False)),
        factor=factor,
        half=half,
        mean=mean,
        variance=variance,
        sites=Sites(precision=precision, linear=linear),
        log_evidence=evidence,
        by_noise=float(tilted.by_noise.sum()),
        rounds=done,
    )
