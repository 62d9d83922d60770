"""The risk along gradient descent on least squares, exact given the data.

Shapes: n examples, p features, K steps asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from jobs.theory.domain import DomainError, Floats, above, at_least


@dataclass(frozen=True, kw_only=True)
class ExcessRisk:
    """The excess risk averaged over the training noise, in two parts."""

    bias: Floats
    """(K,) from the part of the teacher that is not learned yet."""
    variance: Floats
    """(K,) from the noise that has been learned."""

    @property
    def total(self) -> Floats:
        """(K,)"""
        return self.bias + self.variance


def expected_excess_risk(
    x: ArrayLike,
    steps: ArrayLike,
    *,
    teacher: ArrayLike,
    learning_rate: float,
    noise_variance: float,
    variances: ArrayLike = 1.0,
    weight_decay: float = 0.0,
    start: ArrayLike = 0.0,
    teacher_variances: ArrayLike = 0.0,
    start_variances: ArrayLike = 0.0,
) -> ExcessRisk:
    """E[(theta_k - theta*)' Sigma (theta_k - theta*)] over the training noise, given X; discrete steps.

    The mean may be over random teachers and starts too: with a = f/theta* (1 - q) - 1 for each mode, the bias is
    a'(A o T)a + q'(A o Z)q + 2 a'(A o C)q, where T, Z and C are the second moments of U'theta* and U'theta_0.

    Gradient descent on (1/2n)|X theta - y|^2 + (lam/2)|theta|^2 from theta_0. With S = X'X/n = U diag(l) U' and
    q = (1 - eta (l + lam))^k: U'(theta_k - theta*) = q U'(theta_0 - f) + U'(f - theta*) + noise, where f is the ridge
    solution without noise, f_j = l_j theta*_j / (l_j + lam). At lam = 0, theta_0 = 0 this is
    (q U'theta*)' A (q U'theta*) + (s2/n) sum_j A_jj (1 - q_j)^2 / l_j, A = U' Sigma U.

    Source: Ali, Kolter, Tibshirani 2019 (arXiv 1810.10082) for the flow; here with (1 - eta l)^k in place of
    exp(-t l), which makes it exact for discrete steps.
    Domain: any X; y = X theta* + noise of variance s2, independent between examples; test inputs of covariance
    diag(variances). It holds for learning rates that diverge too, until numbers overflow.

    Args:
        x: (n, p) training inputs.
        steps: (K,) steps k >= 0.
        teacher: (p,) theta*.
        learning_rate: eta > 0.
        noise_variance: s2 >= 0.
        variances: (p,) or a number, the diagonal of Sigma.
        weight_decay: lam >= 0.
        start: (p,) or a number, theta_0.
        teacher_variances: (p,) or a number: the teacher is `teacher` and a random part with uncorrelated entries of
            these variances (and mean 0).
        start_variances: the same of the start, independent of the teacher.

    Raises:
        DomainError: an argument is outside its range or of the wrong shape.
    """
    inputs = at_least("x", x, -np.inf)
    if inputs.ndim != 2:
        raise DomainError("x", "must be a matrix of examples by features", inputs.shape)
    n, p = inputs.shape
    k = at_least("steps", steps, 0).reshape(-1)
    s2, lam = float(at_least("noise_variance", noise_variance, 0)), float(at_least("weight_decay", weight_decay, 0))
    eta = float(above("learning_rate", learning_rate, 0))
    spread = np.broadcast_to(at_least("variances", variances, 0), (p,))
    theta = np.broadcast_to(at_least("teacher", teacher, -np.inf), (p,))
    theta_0 = np.broadcast_to(at_least("start", start, -np.inf), (p,))
    eigen, u = np.linalg.eigh(inputs.T @ inputs / n)
    eigen = np.maximum(eigen, 0.0)
    a = u.T @ (spread[:, None] * u)
    target, first = u.T @ theta, u.T @ theta_0
    spreads = [
        np.broadcast_to(at_least(name, value, 0), (p,))
        for name, value in (("teacher_variances", teacher_variances), ("start_variances", start_variances))
    ]
    teachers, starts = (np.outer(c, c) + u.T @ (v[:, None] * u) for c, v in zip((target, first), spreads, strict=True))
    rate = eigen + lam
    moving = rate > 1e-12 * max(float(rate.max()), 1e-300)
    share = np.where(moving, eigen / np.where(moving, rate, 1.0), 0.0)
    q = (1.0 - eta * np.where(moving, rate, 0.0)) ** k[:, None]
    unlearned = share * (1.0 - q) - 1.0
    bias = np.einsum("kj,kj->k", unlearned @ (a * teachers), unlearned) + np.einsum("kj,kj->k", q @ (a * starts), q)
    bias += 2 * np.einsum("kj,kj->k", unlearned @ (a * np.outer(target, first)), q)
    noise = np.where(moving, share / np.where(moving, rate, 1.0), 0.0) * (1.0 - q) ** 2
    return ExcessRisk(bias=bias, variance=s2 / n * noise @ np.diag(a))
