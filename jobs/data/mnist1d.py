"""MNIST-1D (Greydanus 2020, "Scaling down deep learning"), generated once per machine and cached on its disk.

40 inputs, 10 classes. The default of the package mnist1d is 4,000 training and 1,000 test examples; the notebook
deep-double-descent generates 16,000 and tests on 12,000.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.data.cache import cache_folder, made

INPUTS, CLASSES = 40, 10


def package_seed(data_seed: int, trial_seed: int) -> int:
    """The seed that the package draws a trial's data set with; 0: the package's own, as published.

    `data_seed` is as in `jobs.packed.fields`.
    """
    if data_seed >= 0:
        return data_seed
    digest = hashlib.blake2b(f"{trial_seed}/mnist1d".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") or 1


@lru_cache(maxsize=4)
def mnist1d(
    train: int = 4000, test: int = 1000, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Training inputs (train, 40), labels (train,), test inputs (test, 40), labels (test,).

    `seed` is as returned by `package_seed`.
    """
    path = cache_folder() / f"mnist1d-{train}-{test}{f'-{seed}' if seed else ''}.npz"
    made(path.name, path.exists, lambda: _generate(path, train, test, seed))
    with np.load(path, allow_pickle=False) as kept:
        return kept["x"], kept["y"], kept["x_test"], kept["y_test"]


def _generate(path: Path, train: int, test: int, seed: int) -> None:
    from mnist1d.data import get_dataset_args, make_dataset

    arguments = get_dataset_args()
    if seed:
        arguments.seed = seed
    # The package makes equally many of each class, rounded down; the surplus is cut off below.
    arguments.num_samples = -(-(train + test) // CLASSES) * CLASSES
    # The package truncates samples * split: half an example keeps the count exact.
    arguments.train_split = (train + 0.5) / arguments.num_samples
    with contextlib.redirect_stdout(io.StringIO()):
        data = make_dataset(arguments)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written under another name and renamed: it is there whole or not at all.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
        np.savez(
            file,
            x=data["x"].astype(np.float32),
            y=data["y"].astype(np.int64),
            x_test=data["x_test"][:test].astype(np.float32),
            y_test=data["y_test"][:test].astype(np.int64),
        )
    Path(file.name).replace(path)
