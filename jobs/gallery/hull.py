"""Whether fresh points lie in the convex hull of a sample: `job: jobs.gallery.hull:train`, or `:digits`.

Balestriero, Pesenti, LeCun 2021 (arXiv 2110.09485): in high dimension a test point is almost never interpolated.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from jobs.grokking.digits import load

Floats = NDArray[np.float64]


def train(
    *, dimension: int = 4, sample_count: int = 60, fresh: int = 20, seed: int, report: Callable[..., None]
) -> None:
    """Reports the share of `fresh` points that lie in the hull of `sample_count` others; all are N(0, I)."""
    random = np.random.default_rng([seed, dimension])
    report(1, inside=share_inside(random.standard_normal((fresh + sample_count, dimension)), fresh))


def digits(
    *, dimension: int = 4, sample_count: int = 60, fresh: int = 20, seed: int, report: Callable[..., None]
) -> None:
    """The same of scikit-learn's 1,797 digits, by the first principal components of all of them."""
    pixels = load("digits")[0].astype(np.float64)
    centred = pixels - pixels.mean(0)
    components = np.linalg.svd(centred, full_matrices=False)[2][:dimension]
    order = np.random.default_rng(seed).permutation(len(pixels))[: fresh + sample_count]
    report(1, inside=share_inside(centred[order] @ components.T, fresh))


train.metrics = digits.metrics = ("inside",)  # type: ignore[attr-defined]


def share_inside(points: Floats, fresh: int) -> float:
    """Of the first `fresh` points, in the hull of the others."""
    return float(np.mean([is_inside(point, points[fresh:]) for point in points[:fresh]]))


def is_inside(point: Floats, hull: Floats) -> bool:
    """Whether weights >= 0 of sum 1 on the (n, d) points of the hull give the point: a linear program."""
    from scipy.optimize import linprog

    equal = np.vstack([hull.T, np.ones(len(hull))])
    done = linprog(np.zeros(len(hull)), A_eq=equal, b_eq=np.append(point, 1.0), method="highs")
    return bool(done.status == 0)
