"""CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST from the files that their authors publish.

A data set is read from the archive that a trial names, or from the standard files in the data folder, which are
downloaded once where there is a network. Files in the data folder, and a CIFAR archive with the published name
anywhere, must have the published MD5 checksum, so that an incomplete download is an error; any other file that a
trial names is read unchecked.

CIFAR may be the "binary version" (records of a label and 3,072 bytes) or the "python version" (pickles, which are read
by an unpickler that can only make arrays); MNIST and Fashion-MNIST are four IDX files, compressed or not.
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

from jobs.data.cache import cache_folder, made
from jobs.job import ParamError

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Images:
    """One data set, as on disk."""

    x: Bytes
    """(N, C, H, W) training images, 0 to 255."""
    y: NDArray[np.int64]
    """(N,) training classes."""
    x_test: Bytes
    y_test: NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """What is known of a data set before it is read."""

    address: str
    """Where the files can be downloaded from."""
    files: Mapping[str, str]
    """File name -> its MD5 checksum; of CIFAR's two versions one is enough."""
    shape: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...]
    """Per channel, of the published training images, in units of the largest value."""
    std: tuple[float, ...]
    train: int
    """Training images of the published data set."""
    test: int = 10_000
    classes: int = 10


def _cifar(classes: int, mean: tuple[float, ...], std: tuple[float, ...], binary: str, python: str) -> Source:
    files = {f"cifar-{classes}-{version}.tar.gz": md5 for version, md5 in (("binary", binary), ("python", python))}
    return Source("https://www.cs.toronto.edu/~kriz/", files, (3, 32, 32), mean, std, 50_000, classes=classes)


def _mnist(address: str, mean: float, std: float, *checksums: str) -> Source:
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    files = {f"{part}-ubyte.gz": md5 for part, md5 in zip(parts, checksums, strict=True)}
    return Source(address, files, (1, 28, 28), (mean,), (std,), 60_000)


SOURCES: Mapping[str, Source] = {
    "cifar10": _cifar(
        10,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        "c32a1d4ab5d03f1284b67883e8d87530",
        "c58f30108f718f92721af3b95e74349a",
    ),
    "cifar100": _cifar(
        100,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        "03b5dce01913d631647c71ecec9e9cb8",
        "eb9058c3a382ffc7106e4002c42a8d85",
    ),
    "mnist": _mnist(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        0.1307,
        0.3081,
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "fashion_mnist": _mnist(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        0.2860,
        0.3530,
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
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
    images = load_images(name, archive)
    for parameter, wanted, held in (("pool", train, len(images.x)), ("test_count", test, len(images.x_test))):
        if wanted > held:
            raise ParamError(parameter, f"must be at most {held}, which is all that the archive holds", wanted)
    return Images(images.x[:train], images.y[:train], images.x_test[:test], images.y_test[:test])


@lru_cache(maxsize=2)
def _read(name: str, where: Path, stamp: object) -> Images:  # noqa: ARG001 - part of the key
    """Read once per worker; `stamp` changes with the files."""
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
    """The standard file or folder of a data set, downloaded from its standard address where it is missing."""
    source, folder = SOURCES[name], cache_folder() / name
    if name.startswith("cifar"):
        file = next((file for file in source.files if (folder / file).exists()), next(iter(source.files)))
        made(name, (folder / file).exists, lambda: _download(name, file, folder))
        return folder / file

    def missing() -> list[str]:
        return [f for f in source.files if not ((folder / f).exists() or (folder / f.removesuffix(".gz")).exists())]

    def fetch() -> None:
        for file in missing():
            _download(name, file, folder)

    made(name, lambda: not missing(), fetch)
    return folder


def _download(name: str, file: str, folder: Path) -> None:
    """Download one standard file; it gets its name only when it is complete and has the published checksum."""
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
            rule = f"is not given, {folder / file} is missing, and {address} cannot be downloaded ({error}): "
            raise ParamError("archive", rule + "put the file there, or name it by `archive`", "") from error
        except ParamError:
            path.unlink(missing_ok=True)
            raise
    path.replace(folder / file)


def _check_sum(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != expected:
        rule = f"is damaged: its MD5 is {md5}, published is {expected}; download it again"
        raise ParamError("archive", rule, str(path))


# --- CIFAR ---

_TRAIN_FILES = {"cifar10": [f"data_batch_{i}" for i in range(1, 6)], "cifar100": ["train"]}
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
        raise ValueError(f"it contains neither {_TRAIN_FILES[name][0]} nor {_TRAIN_FILES[name][0]}.bin")
    if f"{_TEST_FILES[name]}{suffix}" not in parts:
        raise ValueError(f"it does not contain {_TEST_FILES[name]}{suffix}")
    x_test, y_test = decode(parts[f"{_TEST_FILES[name]}{suffix}"], name)
    return Images(np.concatenate([x for x, _ in train]), np.concatenate([y for _, y in train]), x_test, y_test)


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _records(content: bytes, name: str) -> tuple[Bytes, NDArray[np.int64]]:
    """The binary version: one label byte (CIFAR-100: the coarse label, then the fine one), then 3,072 of the image."""
    labels = 2 if name == "cifar100" else 1
    size = labels + 3072
    if not content or len(content) % size:
        raise ValueError(f"{len(content)} bytes are not a whole number of records of {size} bytes")
    table = np.frombuffer(content, dtype=np.uint8).reshape(-1, size)
    return table[:, labels:].reshape(-1, 3, 32, 32), table[:, labels - 1].astype(np.int64)


def _pickled(content: bytes, name: str) -> tuple[Bytes, NDArray[np.int64]]:
    """The python version: a dictionary with `data` (N, 3072) and `labels` or `fine_labels`."""
    table = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    labels = table[b"fine_labels" if name == "cifar100" else b"labels"]
    data = np.asarray(table[b"data"], dtype=np.uint8)
    return data.reshape(-1, 3, 32, 32), np.asarray(labels, dtype=np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Makes arrays, numbers and text, and refuses everything else: a pickle could otherwise run any code."""

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
    parts: list[Bytes] = []
    for file, digest in SOURCES[name].files.items():
        packed, plain = where / file, where / file.removesuffix(".gz")
        path = packed if packed.exists() else plain
        if path == packed and where == cache_folder() / name:
            _check_sum(packed, digest)
        content = path.read_bytes()
        parts.append(_idx(gzip.decompress(content) if path == packed else content))
    x, y, x_test, y_test = parts
    return Images(x[:, None], y.astype(np.int64), x_test[:, None], y_test.astype(np.int64))


def _idx(content: bytes) -> Bytes:
    """An array of bytes in the IDX format: two zeros, the type (8), the number of dimensions, their sizes, the data."""
    zeros, code, dimensions = struct.unpack_from(">HBB", content)
    if zeros or code != 8:
        raise ValueError("it is not an IDX file of bytes")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)
