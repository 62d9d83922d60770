"""Trees and forests as smoothers: `job: jobs.gallery.trees:train`; Curth et al. 2023 (arXiv 2310.18988)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.grokking.digits import CLASSES, load

Floats = NDArray[np.float64]


def train(
    *,
    leaves: int = 1000,
    trees: int = 1,
    sample_count: int = 1000,
    label_noise: float = 0.0,
    seed: int,
    report: Callable[..., None],
) -> None:
    """Regression trees on digits, of at most so many leaves, which are averaged; targets are 0 and 1, one per class.

    A share `label_noise` of the training labels is redrawn from all classes. As in the authors' code, a split looks at
    the square root of the number of pixels, and each tree at all examples. Reports the squared error, summed over
    classes; the error; and the effective parameters on test and on training inputs.
    """
    pixels, classes = load("digits")
    random = np.random.default_rng(seed)
    order, n = random.permutation(len(pixels)), sample_count
    x, targets = pixels[order], np.eye(CLASSES)[classes[order]]
    redrawn = random.random(n) < label_noise
    noisy = np.where(redrawn[:, None], np.eye(CLASSES)[random.integers(CLASSES, size=n)], targets[:n])
    options: dict[str, Any] = {"max_leaf_nodes": leaves, "max_features": "sqrt", "bootstrap": False}
    ensemble = importlib.import_module("sklearn.ensemble")  # an optional import, as the digits are
    forest = ensemble.RandomForestRegressor(trees, random_state=int(random.integers(2**31)), **options).fit(
        x[:n], noisy
    )
    weights = smoother(forest.apply(x), n)
    predicted = weights[n:] @ noisy
    effective = n * np.square(weights).sum(1)
    report(
        1,
        squared_error=float(np.square(predicted - targets[n:]).sum(1).mean()),
        error=float((predicted.argmax(1) != targets[n:].argmax(1)).mean()),
        effective_parameters=float(effective[n:].mean()),
        train_effective_parameters=float(effective[:n].mean()),
        leaves=float(np.mean([tree.get_n_leaves() for tree in forest.estimators_])),
    )


def smoother(leaf: NDArray[np.int64], n: int) -> Floats:
    """(N, n) weights of the first n targets in each of N predictions, from the (N, trees) leaves of the inputs."""
    total = np.zeros((len(leaf), n))
    for column in leaf.T:
        same = column[:, None] == column[:n]
        total += same / same.sum(1, keepdims=True)
    weights: Floats = total / leaf.shape[1]
    return weights
