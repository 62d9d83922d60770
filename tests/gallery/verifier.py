"""Row 15, second part: how good a verifier of synthetic labels must be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import optimize, stats

from orchestrator.analysis.critical import Threshold, threshold
from tests.gallery.row import LEVEL, Finding, within

INPUTS, SEPARATION, NEEDED = 20, 2.0, 0.9


def accuracy(n: int, error: float, verifier: float, *, d: int = INPUTS, r: float = SEPARATION) -> float:
    """Of least squares on m = n ((1 - p) q + p (1 - q)) kept examples, m well above d.

    a is the mean of y y' among the kept. In the regression of 1 on y' x, the weight along mu tends to a r / (1 + r^2);
    d - 1 others, of noise, share (d - 1) / (m - d - 1) of the unexplained variance 1 - (a r)^2 / (1 + r^2).
    """
    right, wrong = (1 - error) * verifier, error * (1 - verifier)
    m, a = n * (right + wrong), (right - wrong) / (right + wrong)
    along = a * r / (1 + r**2)
    others = (1 - a * r * along) * (d - 1) / (m - d - 1)
    return float(stats.norm.cdf(r * along / np.sqrt(along**2 + others)))


def needed(n: int, error: float) -> float:
    """The verifier's accuracy at which that of the classifier is NEEDED; tends to `error` as n grows."""
    return float(optimize.brentq(lambda q: accuracy(n, error, q) - NEEDED, error, 1.0))


def broken(error: Any) -> Any:
    """The verifier's accuracy below which most of what is kept is wrong, for any n (Feng et al. 2024: p* = q)."""
    return error


def check(breakdown: Any, level: Any) -> Iterator[Finding]:
    """The breakdown at every error of the generator, and the accuracy that is needed for NEEDED."""
    trials = breakdown.trials()
    for side, part in (("below", trials.generator_error < 0.5), ("above", trials.generator_error >= 0.5)):
        these = trials[part]
        fit = fitted(these.verifier_accuracy - broken(these.generator_error), these.final_accuracy >= 0.5)
        what = f"breakdown, generator's error {side} 1/2: verifier's accuracy less this error"
        yield crossing(what, fit, -0.02, 0.02)
    for (error, n), these in level.trials().groupby(["generator_error", "sample_count"]):
        fit = fitted(these.verifier_accuracy, these.final_accuracy >= NEEDED)
        q = needed(int(n), float(error))
        yield crossing(f"error {error:g}, n {n}: verifier's accuracy needed for {NEEDED}", fit, 0.95 * q, 1.05 * q)


def fitted(x: Any, reached: Any) -> Threshold:
    return threshold(x.to_numpy(), reached.to_numpy(dtype=float), np.ones(len(x)), level=LEVEL)


def crossing(what: str, fit: Threshold, first: float, last: float) -> Finding:
    """Where half of the trials reach it is between two bounds."""
    at = fit.critical
    return within(what, at.value, at.low, at.high, first, last, n=fit.trials)
