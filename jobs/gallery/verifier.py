"""A classifier trained on the synthetic examples that a verifier keeps: `job: jobs.gallery.verifier:train`.

Feng et al. 2024 (arXiv 2406.07515): a Gaussian mixture, labels of a generator that errs, a verifier that errs too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def train(
    *,
    sample_count: int = 400,
    inputs: int = 20,
    separation: float = 2.0,
    generator_error: float = 0.3,
    verifier_accuracy: float = 0.8,
    seed: int,
    report: Callable[..., None],
) -> None:
    """Reports the accuracy on the mixture of least squares fitted to the kept examples, and their number.

    An input of class y = +-1 is N(y mu, I) with |mu| = `separation`. Its synthetic label is wrong with probability
    `generator_error`; the verifier keeps right ones with probability `verifier_accuracy`, and wrong ones with 1 - this.
    """
    setting = np.array([generator_error, verifier_accuracy]).view(np.uint64)  # trials are independent at equal seeds
    random = np.random.default_rng([seed, sample_count, *map(int, setting)])
    right = random.random(sample_count) >= generator_error
    kept = right[(random.random(sample_count) < verifier_accuracy) == right]
    # An input times its synthetic label is N(mu, I) where the label is right, and N(-mu, I) where it is wrong.
    x = random.standard_normal((len(kept), inputs))
    x[:, 0] += np.where(kept, separation, -separation)
    weights = np.linalg.lstsq(x, np.ones(len(kept)), rcond=None)[0]
    margin = separation * weights[0] / max(float(np.linalg.norm(weights)), 1e-300)
    report(1, accuracy=0.5 * (1 + math.erf(margin / math.sqrt(2))), kept=float(len(kept)))
