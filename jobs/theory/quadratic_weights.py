"""Gromov's analytic weights: a quadratic perceptron that adds modulo p without training."""

from __future__ import annotations

import numpy as np

from jobs.theory.domain import DomainError, Floats


def gromov_weights(p: int, width: int, *, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """U (p, N), V (p, N) and W2 (p, N) of f(x, y) = W2 (U[x] + V[y])^2, the square elementwise.

    U_xk = cos(2 pi s_k x / p + a_k), V_yk = cos(2 pi s_k y / p + b_k), W2_qk = cos(2 pi s_k q / p + a_k + b_k), with
    frequencies s_k that go round 1..(p-1)/2 and independent uniform phases a_k, b_k. The product of the cosines gives
    cos(2 pi s_k (x + y - q) / p) / 2, which adds up at q = x + y mod p; every other term averages out with the width.

    Source: Gromov 2023 (arXiv 2301.02679), equations 6, 7 and 12 (the phases).
    Domain: p an odd prime (any odd p >= 3 is accepted); accuracy is 1 only from some width on: p = 97, N >= 192.

    Raises:
        DomainError: p is even or below 3, or the width is below 1.
    """
    if p < 3 or p % 2 == 0:
        raise DomainError("p", "must be an odd number >= 3", p)
    if width < 1:
        raise DomainError("width", "must be at least 1", width)
    random = np.random.default_rng(seed)
    a, b = random.uniform(-np.pi, np.pi, (2, width))
    angle = 2 * np.pi / p * np.outer(np.arange(p), 1 + np.arange(width) % ((p - 1) // 2))
    return np.cos(angle + a), np.cos(angle + b), np.cos(angle + a + b)


def quadratic_accuracy(u: Floats, v: Floats, w2: Floats, *, rows: int = 16) -> float:
    """The fraction of all p^2 pairs for which the largest output is x + y mod p.

    Args:
        u: (p, N) first layer for x.
        v: (p, N) first layer for y.
        w2: (p, N) readout.
        rows: values of x evaluated at once; affects memory only.
    """
    p = len(u)
    correct = 0
    for begin in range(0, p, rows):
        x = np.arange(begin, min(begin + rows, p))
        outputs = ((u[x, None] + v[None]) ** 2) @ w2.T
        correct += int((outputs.argmax(2) == (x[:, None] + np.arange(p)) % p).sum())
    return correct / p**2
