"""Images for grokking beyond algorithms (Omnigrok: Liu, Michaud, Tegmark 2022).

`digits` is part of scikit-learn, an optional import (1,797 images of 8 x 8, no download); `mnist` and `fashion_mnist`
are read from their standard files (`jobs.data.images`).
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from jobs.data import images
from jobs.job import ParamError

CLASSES = 10


@dataclass(frozen=True)
class ImageSet:
    """What is known of a set of images before it is read."""

    inputs: int
    """Pixels."""
    train: int
    """Images that the train set is drawn from."""
    test: int
    """Images of the official test set; 0: all images outside the train set are tested."""


SOURCES = {"digits": ImageSet(64, 1797, 0)} | {
    name: ImageSet(math.prod(images.SOURCES[name].shape), images.SOURCES[name].train, images.SOURCES[name].test)
    for name in ("mnist", "fashion_mnist")
}


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
            rule = "digits are part of scikit-learn, which is not installed: pip install scikit-learn, or use mnist"
            raise ParamError("operation", rule, name, ("mnist", "fashion_mnist")) from error
        pixels, classes = load_digits(return_X_y=True)
        return (pixels / 16).astype(np.float32), classes.astype(np.int64)
    data, source = images.load_images(name, archive), SOURCES[name]
    if len(data.x) != source.train or len(data.x_test) != source.test:
        rule = f"must hold {source.train} training and {source.test} test images, as {name} does"
        raise ParamError("archive", rule, archive)
    both = np.concatenate([data.x, data.x_test]).reshape(-1, source.inputs)
    return np.multiply(both, np.float32(1 / 255), dtype=np.float32), np.concatenate([data.y, data.y_test])
