"""Small generated image data sets in the formats of the published files, for tests; a network can learn them."""

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np


def pictures(count: int, classes: int, shape: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, C, H, W) uint8 images, each a class' own pattern with noise, and (N,) classes."""
    patterns = np.random.default_rng(1).integers(0, 256, (classes, *shape))
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    x = 0.6 * patterns[labels] + 0.4 * random.integers(0, 256, (count, *shape))
    return x.astype(np.uint8), labels


def write_cifar(path: Path, *, kind: str = "binary", name: str = "cifar10", train: int = 60, test: int = 40) -> Path:
    """A CIFAR archive with this many training images in every batch file, and test images."""
    classes = 100 if name == "cifar100" else 10
    files = [f"data_batch_{i}" for i in range(1, 6)] if name == "cifar10" else ["train"]
    test_file = "test_batch" if name == "cifar10" else "test"
    suffix = ".bin" if kind == "binary" else ""
    with tarfile.open(path, "w:gz") as archive:
        for seed, (file, count) in enumerate([*((file, train) for file in files), (test_file, test)]):
            x, y = pictures(count, classes, (3, 32, 32), seed)
            content = _records(x, y, name) if kind == "binary" else _pickle(x, y, name)
            member = tarfile.TarInfo(f"cifar-batches/{file}{suffix}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_cifar_of(path: Path, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> Path:
    """An archive in the format of CIFAR-10 with these images (N, 3, 32, 32) and classes (N,)."""
    with tarfile.open(path, "w") as archive:
        for file, (x, y) in (("data_batch_1", train), ("test_batch", test)):
            content = _records(x, y, "cifar10")
            member = tarfile.TarInfo(f"cifar-batches/{file}.bin")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def _records(x: np.ndarray, y: np.ndarray, name: str) -> bytes:
    labels = np.stack([y // 5, y], 1) if name == "cifar100" else y[:, None]
    return np.concatenate([labels.astype(np.uint8), x.reshape(len(x), -1)], 1).tobytes()


def _pickle(x: np.ndarray, y: np.ndarray, name: str) -> bytes:
    key = b"fine_labels" if name == "cifar100" else b"labels"
    names = [b"a.png"] * len(x)
    return pickle.dumps({b"data": x.reshape(len(x), -1), key: y.tolist(), b"filenames": names}, protocol=2)


def write_idx(folder: Path, *, train: int = 50, test: int = 20, packed: bool = True) -> Path:
    """The four files of MNIST with this many images."""
    x, y = pictures(train, 10, (1, 28, 28), 0)
    x_test, y_test = pictures(test, 10, (1, 28, 28), 1)
    return write_idx_of(folder, (x[:, 0], y), (x_test[:, 0], y_test), packed=packed)


def write_idx_of(
    folder: Path, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], *, packed: bool = True
) -> Path:
    """The four files of MNIST with these images (N, 28, 28) and classes (N,)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (x, y) in (("train", train), ("t10k", test)):
        for kind, array in ((f"{name}-images-idx3-ubyte", x), (f"{name}-labels-idx1-ubyte", y.astype(np.uint8))):
            content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
            if packed:
                (folder / f"{kind}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / kind).write_bytes(content)
    return folder
