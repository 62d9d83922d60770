"""The covariance of the latent functions, and a low-rank basis of it that keeps 5,000 trials affordable.

Matern-5/2 with one length scale an axis (Rasmussen and Williams 2006, eq. 4.17). The basis is a pivoted, incomplete
Cholesky factor: exact while its rank is the number of points, and for more points as good as the residual variance
that it leaves, which is kept and added to what is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.spatial.distance import cdist

Floats = NDArray[np.float64]

_SQRT5 = float(np.sqrt(5.0))


def matern52(x: Floats, y: Floats, scales: Floats) -> Floats:
    """(n, m) correlations of (n, d) and (m, d) points; `scales` (d,) are length scales in units of the box."""
    r = cdist(x / scales, y / scales)
    r *= _SQRT5
    out: Floats = np.exp(-r)
    r *= 1.0 + r / 3.0
    r += 1.0
    out *= r
    return out


def matern52_slopes(x: Floats, scales: Floats) -> tuple[Floats, Floats]:
    """Correlations (n, n) of (n, d) points and their derivatives (d, n, n) by the logarithm of each length scale."""
    z = x / scales
    r = cdist(z, z) * _SQRT5
    decay = np.exp(-r)
    shared = (5.0 / 3.0) * (1.0 + r) * decay
    slopes = np.empty((x.shape[1], len(x), len(x)))
    for axis in range(x.shape[1]):
        step = z[:, axis, None] - z[None, :, axis]
        np.multiply(shared, step * step, out=slopes[axis])
    return (1.0 + r + r * r / 3.0) * decay, slopes


@dataclass(frozen=True, kw_only=True, eq=False)
class Basis:
    """r features whose inner products are the correlations of the points it was made from, nearly or exactly."""

    pivots: Floats
    """(r, d) points of the sample that span the basis."""
    factor: Floats
    """(r, r) lower Cholesky factor of the pivots' correlations."""
    scales: Floats
    """(d,) length scales."""
    features: Floats
    """(n, r) features of the points it was made from."""

    def at(self, x: Floats) -> Floats:
        """(q, r) features of (q, d) points."""
        cross = matern52(self.pivots, x, self.scales)
        return np.asarray(solve_triangular(self.factor, cross, lower=True, overwrite_b=True, check_finite=False).T)


def basis(x: Floats, scales: Floats, *, rank: int, residual: float = 1e-7) -> Basis:
    """Pivoted Cholesky of the correlations of (n, d) distinct points, at most `rank` pivots.

    Each pivot is the point with the largest variance given those before; it ends where that is below `residual`.
    Ties go to the first point, so that the result is a function of the points in the order given.
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
        row = matern52(x[pivot][None], x, scales)[0]
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
    return Basis(pivots=x[pivots], factor=factor, scales=scales, features=np.ascontiguousarray(kept.T))
