"""Least squares trained on its own predictions, generation after generation: `job: jobs.gallery.generations:train`.

Dohmatob, Feng, Kempe 2024 (arXiv 2402.07712): each generation's data replace the last one's; Gerstgrasser et al. 2024
(arXiv 2404.01413): they accumulate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np


def train(
    *,
    inputs: int = 20,
    sample_count: int = 60,
    noise_variance: float = 1.0,
    generations: int = 10,
    data: Literal["replace", "accumulate"] = "replace",
    designs: Literal["fresh", "repeated"] = "fresh",
    seed: int,
    report: Callable[..., None],
) -> None:
    """Reports |w_t - w|^2 at each generation t = 1, 2, ...; targets are of the model of generation t - 1, plus noise.

    Inputs are N(0, I); `designs: repeated` has the same ones in every generation. The true w is 0, without loss: the
    error of least squares does not depend on it.
    """
    random = np.random.default_rng([seed, 0])
    w = np.zeros(inputs)
    gram, moment = np.zeros((inputs, inputs)), np.zeros(inputs)
    x = random.standard_normal((sample_count, inputs))
    for generation in range(1, generations + 1):
        if designs == "fresh" and generation > 1:
            x = random.standard_normal((sample_count, inputs))
        y = x @ w + np.sqrt(noise_variance) * random.standard_normal(sample_count)
        kept = float(data == "accumulate")
        gram, moment = kept * gram + x.T @ x, kept * moment + x.T @ y
        w = np.linalg.solve(gram, moment)
        report(generation, excess_risk=float(w @ w))


train.metrics = ("excess_risk",)  # type: ignore[attr-defined]
