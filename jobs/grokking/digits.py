"""Handwritten digits for grokking beyond algorithms (Omnigrok: Liu, Michaud, Tegmark 2022).

`digits` is the optical-recognition set that comes inside scikit-learn (1,797 images of 8 x 8, no download; an
optional import); `mnist` and `fashion_mnist` are read from their standard files (`jobs.data.images`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from jobs.job import ParamError

CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is known of a set before it is read."""

    inputs: int
    """Pixels."""
    train: int
    """Images that the train set is drawn from."""
    test: int
    """Images of the official test set; 0: what is not trained on is the test set."""


SOURCES: Mapping[str, Source] = {
    "digits": Source(inputs=64, train=1797, test=0),
    "mnist": Source(inputs=784, train=60_000, test=10_000),
    "fashion_mnist": Source(inputs=784, train=60_000, test=10_000),
}


def pool(name: str) -> int:
    """Images that the train set is drawn from."""
    return SOURCES[name].train


@lru_cache(maxsize=2)
def load(name: str, archive: str = "") -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pixels (train + test, inputs) from 0 to 1, and classes; the images to train on come first.

    Raises:
        ParamError: scikit-learn is not installed, or the files are missing or damaged.
    """
    if name == "digits":
        try:
            load_digits = importlib.import_module("sklearn.datasets").load_digits
        except ImportError as error:
            raise ParamError(
                "operation",
                "digits come with scikit-learn, which is not installed here: pip install scikit-learn, or take mnist",
                name,
                ("mnist", "fashion_mnist"),
            ) from error
        pixels, classes = load_digits(return_X_y=True)
        return (pixels / 16).astype(np.float32), classes.astype(np.int64)
    from jobs.data.images import load_images

    images = load_images(name, archive)
    source = SOURCES[name]
    if len(images.x) != source.train or len(images.x_test) != source.test:
        raise ParamError(
            "archive", f"must hold {source.train} training and {source.test} test images, as {name} does", archive
        )
    both = np.concatenate([images.x, images.x_test]).reshape(-1, source.inputs)
    return np.multiply(both, np.float32(1 / 255), dtype=np.float32), np.concatenate([images.y, images.y_test])
