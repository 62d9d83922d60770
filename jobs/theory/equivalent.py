"""The deterministic equivalent of ridge regression and minimum-norm least squares, for any spectrum of the inputs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from jobs.theory.domain import Floats, above, at_least


def implicit_ridge(n: float, variances: ArrayLike, *, weight_decay: float = 0.0) -> float:
    """kappa >= 0 with n = sum_j l_j / (l_j + kappa) + n weight_decay / kappa; 0 for p <= n without weight decay.

    Source, domain, arguments: as of `excess_risk`.
    """
    l_P = above("variances", variances, 0)
    if len(l_P) <= n and not weight_decay:
        return 0.0
    low, high = -80.0, math.log(l_P.sum() / n + weight_decay)  # the right side is at most (sum l / n + decay) n / kappa
    for _ in range(100):
        middle = (low + high) / 2
        kappa = math.exp(middle)
        if float((l_P / (l_P + kappa)).sum()) + n * weight_decay / kappa > n:
            low = middle
        else:
            high = middle
    return math.exp(high)


def excess_risk(
    n: float, variances: ArrayLike, squares: ArrayLike, *, noise_variance: float, weight_decay: float = 0.0
) -> Floats:
    """Excess risk (kappa^2 sum l b^2 / (l + kappa)^2 + gamma s2) / (1 - gamma) on a fresh example.

    gamma = (1/n) sum_j l_j^2 / (l_j + kappa)^2, and kappa of `implicit_ridge`. Infinite at p = n without weight decay.

    Source: Hastie, Montanari, Rosset, Tibshirani 2019 (arXiv 1903.08560), theorem 5; in this notation Simon, Dickens,
    Karkada, DeWeese 2021 (arXiv 2110.03922). Isotropic inputs: `minimum_norm.hastie_excess_risk`.
    Domain: Gaussian inputs, independent in the basis of `variances`, every one fitted; n large (the error is of order
    1/n), and p not near n without weight decay.

    Args:
        n: training examples.
        variances: (P,) l_j of the inputs.
        squares: (P,) b_j^2, mean squared coefficients.
        noise_variance: s2.
        weight_decay: lam of (1/2n)|y - X b|^2 + (lam/2)|b|^2.

    Raises:
        DomainError: an argument is outside its range.
    """
    l_P, b_P = above("variances", variances, 0), at_least("squares", squares, 0)
    n_, s2 = float(above("n", n, 0)), at_least("noise_variance", noise_variance, 0)
    kappa = implicit_ridge(n_, l_P, weight_decay=float(at_least("weight_decay", weight_decay, 0)))
    shrunk_P = l_P / (l_P + kappa)
    gamma = float((shrunk_P**2).sum()) / n_
    if gamma >= 1:
        return np.asarray(np.inf)
    bias = kappa**2 * (l_P * b_P / (l_P + kappa) ** 2).sum()
    return np.asarray((bias + gamma * s2) / (1 - gamma), dtype=np.float64)
