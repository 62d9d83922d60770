"""The covariance of the latent functions, and low-rank features of it that keep 5,000 trials affordable.

Matern-5/2 with one lengthscale per axis (Rasmussen and Williams 2006, eq. 4.17). The features come from a pivoted,
incomplete Cholesky factorisation. They are exact while their number equals the number of points; for more points, the
residual variance that they leave out is added to the predictive variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.spatial.distance import cdist

Floats = NDArray[np.float64]

_SQRT5 = float(np.sqrt(5.0))


def matern52(x: Floats, y: Floats, lengthscale: Floats) -> Floats:
    """(n, m) correlations of (n, d) and (m, d) points; `lengthscale` (d,) is in units of the box."""
    r = cdist(x / lengthscale, y / lengthscale)
    r *= _SQRT5
    out: Floats = np.exp(-r)
    r *= 1.0 + r / 3.0
    r += 1.0
    out *= r
    return out


def matern52_gradients(x: Floats, lengthscale: Floats) -> tuple[Floats, Floats]:
    """Correlations (n, n) of (n, d) points, and their derivatives (d, n, n) by the logarithm of each lengthscale."""
    z = x / lengthscale
    r = cdist(z, z) * _SQRT5
    decay = np.exp(-r)
    shared = (5.0 / 3.0) * (1.0 + r) * decay
    gradients = np.empty((x.shape[1], len(x), len(x)))
    for axis in range(x.shape[1]):
        step = z[:, axis, None] - z[None, :, axis]
        np.multiply(shared, step * step, out=gradients[axis])
    return (1.0 + r + r * r / 3.0) * decay, gradients


@dataclass(frozen=True, kw_only=True, eq=False)
class InducingFeatures:
    """r features whose inner products are the correlations of the training points, approximately or exactly."""

    inducing: Floats
    """(r, d) inducing points, a subset of the training points."""
    factor: Floats
    """(r, r) lower Cholesky factor of the correlations of the inducing points."""
    lengthscale: Floats
    """(d,)"""
    train: Floats
    """(n, r) features of the training points."""

    def at(self, x: Floats) -> Floats:
        """(q, r) features of (q, d) points."""
        cross = matern52(self.inducing, x, self.lengthscale)
        return np.asarray(solve_triangular(self.factor, cross, lower=True, overwrite_b=True, check_finite=False).T)


def inducing_features(x: Floats, lengthscale: Floats, *, rank: int, residual: float = 1e-7) -> InducingFeatures:
    """Pivoted Cholesky factorisation of the correlations of (n, d) distinct points, with at most `rank` pivots.

    Each pivot is the point with the largest variance given the earlier ones; the factorisation stops where that
    variance is below `residual`. Ties go to the first point, so the result depends on the points and their order alone.
    """
    n = len(x)
    rank = min(rank, n)
    left = np.ones(n)
    rows = np.empty((rank, n))
    pivots: list[int] = []
    for step in range(rank):
        pivot = int(left.argmax())
        if left[pivot] < residual:
            break
        row = matern52(x[pivot][None], x, lengthscale)[0]
        if step:
            row -= rows[:step, pivot] @ rows[:step]
        row /= np.sqrt(left[pivot])
        row[pivots] = 0.0
        rows[step] = row
        left -= row * row
        left[pivot] = -np.inf
        pivots.append(pivot)
    kept = rows[: len(pivots)]
    factor = np.tril(kept[:, pivots].T)
    train = np.ascontiguousarray(kept.T)
    return InducingFeatures(inducing=x[pivots], factor=factor, lengthscale=lengthscale, train=train)
