"""CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST from the files that their authors publish.

A data set is read from the user's disk: from the archive that a trial names, or from the standard one in the data
folder, which is downloaded once where there is a network. What lies in the data folder, and a CIFAR archive of the
published name wherever it lies, must have the published MD5 checksum (an incomplete download is found, not trained
on); anything else that a trial names is taken as it is.

CIFAR may be the "binary version" (records of a label and 3,072 bytes) or the "python version" (pickles, read by a
reader that can make arrays and nothing else); MNIST and Fashion-MNIST are four IDX files, compressed or not.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import shutil
import struct
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.data.mnist1d import cache_folder
from jobs.job import ParamError

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """One data set as it is on disk."""

    x: Bytes
    """(N, C, H, W) training images, 0 to 255."""
    y: NDArray[np.int64]
    """(N,) training classes."""
    x_test: Bytes
    y_test: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is known of a data set before it is read."""

    classes: int
    shape: tuple[int, int, int]
    """Channels, height, width."""
    train: int
    """Training images of the published data set."""
    test: int
    mean: tuple[float, ...]
    """Per channel, of the published training images, in units of the largest value."""
    std: tuple[float, ...]
    files: Mapping[str, str]
    """Name of each file that makes the data set -> its MD5 checksum; of CIFAR's two versions one is enough."""
    address: str
    """Where the files can be downloaded from."""


_CIFAR_HOST = "https://www.cs.toronto.edu/~kriz/"
SOURCES: Mapping[str, Source] = {
    "cifar10": Source(
        classes=10,
        shape=(3, 32, 32),
        train=50_000,
        test=10_000,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        files={
            "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
            "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
        },
        address=_CIFAR_HOST,
    ),
    "cifar100": Source(
        classes=100,
        shape=(3, 32, 32),
        train=50_000,
        test=10_000,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        files={
            "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
            "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
        },
        address=_CIFAR_HOST,
    ),
    "mnist": Source(
        classes=10,
        shape=(1, 28, 28),
        train=60_000,
        test=10_000,
        mean=(0.1307,),
        std=(0.3081,),
        files={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        address="https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    "fashion_mnist": Source(
        classes=10,
        shape=(1, 28, 28),
        train=60_000,
        test=10_000,
        mean=(0.2860,),
        std=(0.3530,),
        files={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        address="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
}
"""Data set -> what is published of it."""
DOWNLOAD_TIMEOUT_S = 30.0


def load_images(name: str, archive: str = "") -> Images:
    """A data set of `SOURCES`.

    Args:
        name: which one.
        archive: a CIFAR archive (or the folder it was unpacked into), or the folder of the four MNIST files; "" for
            the standard files in the folder `name` of the data folder ($PHASEFRONT_DATA, by default the user's
            cache), downloaded there where they are missing.

    Raises:
        ParamError: there are no such files, they are damaged, or they hold something else.
    """
    where = _standard(name) if not archive else Path(archive).expanduser()
    if not where.exists():
        raise ParamError("archive", f"names no file or folder for data: {name}", archive)
    stamp = tuple(sorted((str(p), p.stat().st_mtime_ns) for p in ([where] if where.is_file() else where.rglob("*"))))
    return _read(name, where, stamp)


def first_images(name: str, archive: str, *, train: int, test: int) -> Images:
    """The first `train` training and `test` test images of a data set.

    Raises:
        ParamError: see `load_images`; or it holds fewer.
    """
    found = load_images(name, archive)
    for parameter, wanted, held in (("pool", train, len(found.x)), ("test_count", test, len(found.x_test))):
        if wanted > held:
            raise ParamError(parameter, f"must be at most {held}, which is all that the archive holds", wanted)
    return Images(x=found.x[:train], y=found.y[:train], x_test=found.x_test[:test], y_test=found.y_test[:test])


@lru_cache(maxsize=2)
def _read(name: str, where: Path, stamp: object) -> Images:  # noqa: ARG001 - part of the key
    """Read once per worker; `stamp` tells a file that was changed since."""
    read = _read_cifar if name.startswith("cifar") else _read_idx
    try:
        images = read(name, where)
    except (OSError, ValueError, KeyError, EOFError, tarfile.TarError, pickle.UnpicklingError, struct.error) as error:
        raise ParamError("archive", f"cannot be read as {name}: {error}", str(where)) from error
    source = SOURCES[name]
    for part, x, y in (("training", images.x, images.y), ("test", images.x_test, images.y_test)):
        if x.shape[1:] != source.shape or len(x) != len(y) or not len(x):
            raise ParamError("archive", f"holds {len(x)} {part} images of shape {x.shape[1:]}", str(where))
        if y.min() < 0 or y.max() >= source.classes:
            raise ParamError("archive", f"holds {part} labels outside 0..{source.classes - 1}", str(where))
    return images


# --- finding, checking, downloading ---


def _standard(name: str) -> Path:
    """The standard file or folder of a data set, made from its standard address where it is missing."""
    source, folder = SOURCES[name], cache_folder() / name
    if name.startswith("cifar"):
        for file in source.files:
            if (folder / file).exists():
                return folder / file
        file = next(iter(source.files))
        _download(name, file, folder)
        return folder / file
    for file in source.files:
        if not (folder / file).exists() and not (folder / file.removesuffix(".gz")).exists():
            _download(name, file, folder)
    return folder


def _download(name: str, file: str, folder: Path) -> None:
    """Fetch one standard file; it appears under its name only when it is whole and has its checksum."""
    address = SOURCES[name].address + file
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{file}.", delete=False) as scratch:
        path = Path(scratch.name)
        try:
            with urllib.request.urlopen(address, timeout=DOWNLOAD_TIMEOUT_S) as answer:
                shutil.copyfileobj(answer, scratch)
            scratch.flush()
            _check_sum(path, SOURCES[name].files[file])
        except (OSError, urllib.error.URLError) as error:
            path.unlink(missing_ok=True)
            raise ParamError(
                "archive",
                f"is not given, {folder / file} is missing, and {address} cannot be downloaded ({error}): "
                f"put the file there, or name it by `archive`",
                "",
            ) from error
        except ParamError:
            path.unlink(missing_ok=True)
            raise
    path.replace(folder / file)


def _check_sum(path: Path, expected: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise ParamError(
            "archive",
            f"is damaged: its MD5 is {digest.hexdigest()}, published is {expected}; download it again",
            str(path),
        )


# --- CIFAR ---

_TRAIN_FILES = {
    "cifar10": [f"data_batch_{i}" for i in range(1, 6)],
    "cifar100": ["train"],
}
_TEST_FILES = {"cifar10": "test_batch", "cifar100": "test"}


def _read_cifar(name: str, where: Path) -> Images:
    if where.is_dir():
        parts = {path.name: path.read_bytes() for path in sorted(where.rglob("*")) if path.is_file()}
    else:
        if where.name in SOURCES[name].files:
            _check_sum(where, SOURCES[name].files[where.name])
        with tarfile.open(where, "r:*") as archive:
            parts = {Path(m.name).name: _member(archive, m) for m in archive.getmembers() if m.isfile()}
    binary = f"{_TEST_FILES[name]}.bin" in parts
    suffix, decode = (".bin", _records) if binary else ("", _pickled)
    train = [decode(parts[f"{file}{suffix}"], name) for file in _TRAIN_FILES[name] if f"{file}{suffix}" in parts]
    if not train:
        raise ValueError(f"there is no {_TRAIN_FILES[name][0]} nor {_TRAIN_FILES[name][0]}.bin in it")
    if f"{_TEST_FILES[name]}{suffix}" not in parts:
        raise ValueError(f"there is no {_TEST_FILES[name]}{suffix} in it")
    x_test, y_test = decode(parts[f"{_TEST_FILES[name]}{suffix}"], name)
    return Images(
        x=np.concatenate([x for x, _ in train]), y=np.concatenate([y for _, y in train]), x_test=x_test, y_test=y_test
    )


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _records(content: bytes, name: str) -> tuple[Bytes, NDArray[np.int64]]:
    """The binary version: one label byte (CIFAR-100: the coarse label, then the fine one), then 3,072 of the image."""
    labels = 2 if name == "cifar100" else 1
    size = labels + 3072
    if not content or len(content) % size:
        raise ValueError(f"{len(content)} bytes are no whole number of records of {size}")
    table = np.frombuffer(content, dtype=np.uint8).reshape(-1, size)
    return table[:, labels:].reshape(-1, 3, 32, 32), table[:, labels - 1].astype(np.int64)


def _pickled(content: bytes, name: str) -> tuple[Bytes, NDArray[np.int64]]:
    """The python version: a dictionary with `data` (N, 3072) and `labels` or `fine_labels`."""
    table = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    labels = table[b"fine_labels" if name == "cifar100" else b"labels"]
    data = np.asarray(table[b"data"], dtype=np.uint8)
    return data.reshape(-1, 3, 32, 32), np.asarray(labels, dtype=np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Makes arrays, numbers and text, and refuses everything else: a pickle may otherwise run any code."""

    _ALLOWED = frozenset(
        {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
        | {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no image archive needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


# --- MNIST ---


def _read_idx(name: str, where: Path) -> Images:
    if not where.is_dir():
        raise ValueError(f"it must be the folder that holds {', '.join(SOURCES[name].files)}")
    parts: dict[str, Bytes] = {}
    for file, digest in SOURCES[name].files.items():
        packed, plain = where / file, where / file.removesuffix(".gz")
        path = packed if packed.exists() else plain
        if path == packed and where == cache_folder() / name:
            _check_sum(packed, digest)
        content = path.read_bytes()
        parts[file.split("-ubyte")[0]] = _idx(gzip.decompress(content) if path == packed else content)
    return Images(
        x=parts["train-images-idx3"][:, None],
        y=parts["train-labels-idx1"].astype(np.int64),
        x_test=parts["t10k-images-idx3"][:, None],
        y_test=parts["t10k-labels-idx1"].astype(np.int64),
    )


def _idx(content: bytes) -> Bytes:
    """An array of bytes in the IDX format: two zeros, the type (8), how many dimensions, their sizes, the bytes."""
    zeros, kind, dimensions = struct.unpack_from(">HBB", content)
    if zeros or kind != 8:
        raise ValueError("it is no IDX file of bytes")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)
