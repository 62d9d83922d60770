"""Where checkpoints are kept: a folder, or a bucket that pyarrow knows (`s3://`, `gs://`, `abfs://`, `hdfs://`).

A file is there whole or not at all: it is written under another name, forced to the disk, and renamed; an object store
copies it under its name in one step.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from orchestrator.checkpoints.contents import TableOfContents, header_bytes, table_of
from orchestrator.process import Process
from orchestrator.secrets import shown

SUFFIX = ".safetensors"
OLD_S = 3600.0
"""A half-written file of this age has no writer any more, wherever it was."""
_PART = re.compile(
    rf"\.?[\w-]+{re.escape(SUFFIX)}\.((?P<machine>[0-9a-f]{{8}})-(?P<pid>\d+)-(?P<started>\d+)\.)?[0-9a-f]{{8}}\.part"
)
SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
"""Of addresses that are not the path of a folder."""


class StoreError(Exception):
    """The store does not answer, refuses, or is full; the message has the reason."""


class Store(ABC):
    """One folder of files, by name."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file, replacing one of this name.

        Raises:
            StoreError: it was not written; an earlier file of this name is as it was.
        """

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The whole file; None if there is none.

        Raises:
            StoreError: it cannot be read.
        """

    @abstractmethod
    def table(self, name: str) -> TableOfContents:
        """A file's table of contents, without reading the rest.

        Raises:
            StoreError: it cannot be read.
            BadCheckpoint: it is not a checkpoint.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """The files that are there, in order; empty where there is no such folder.

        Raises:
            StoreError: it cannot be read.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            StoreError: it is still there.
        """

    @abstractmethod
    def delete_parts(self) -> None:
        """Remove what writers have left half-written that have died.

        Raises:
            StoreError: it cannot be read, or not be removed.
        """


def part_of(name: str) -> str:
    """The name of a file that this process is writing."""
    own = Process.this()
    return f"{name}.{_machine(own)}-{own.pid}-{own.started}.{uuid.uuid4().hex[:8]}.part"


def _is_left(part: str, age_s: float) -> bool:
    """Whether this is a half-written file whose writer has died."""
    match = _PART.fullmatch(part)
    if match is None or age_s >= OLD_S:
        return match is not None
    own = Process.this()
    if match["machine"] != _machine(own):
        return False
    return replace(own, pid=int(match["pid"]), started=int(match["started"])).is_dead(own)


def _machine(process: Process) -> str:
    return hashlib.blake2b(process.machine.encode(), digest_size=4).hexdigest()


def open_store(address: str) -> Store:
    """The store at an address.

    Raises:
        StoreError: there is no such kind of address, or no access.
    """
    scheme = urlsplit(address).scheme
    if scheme in ("", "file") or scheme not in SCHEMES:
        return FolderStore(Path(address.removeprefix("file://")).expanduser().absolute())
    return ArrowStore(address)


class FolderStore(Store):
    """A folder of this machine, or of a file system that machines share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _new(self, part: Path) -> BinaryIO:
        """The file, opened in the folder, which another process may remove at any time where it is empty."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            return part.open("wb")
        except FileNotFoundError:
            self._folder.mkdir(parents=True, exist_ok=True)
            return part.open("wb")

    def write(self, name: str, data: bytes) -> None:
        part = self._folder / f".{part_of(name)}"
        try:
            with self._new(part) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._folder / name)
            self._sync_folder()
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise StoreError(_reason(error)) from error

    def _sync_folder(self) -> None:
        """Force the new name to the disk, where the system can."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(_reason(error)) from error

    def table(self, name: str) -> TableOfContents:
        try:
            with (self._folder / name).open("rb") as file:
                beginning = file.read(8)
                return table_of(beginning + file.read(header_bytes(beginning) - len(beginning)))
        except OSError as error:
            raise StoreError(_reason(error)) from error

    def names(self) -> list[str]:
        try:
            names = [path for path in self._folder.iterdir() if path.name.endswith(SUFFIX)]
            return sorted(path.name for path in names if not path.is_fifo())  # to open one waits for a writer
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StoreError(_reason(error)) from error

    def delete(self, name: str) -> None:
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(_reason(error)) from error
        self._remove_if_empty()

    def delete_parts(self) -> None:
        now = time.time()
        try:
            for path in list(self._folder.iterdir()):
                with contextlib.suppress(FileNotFoundError):  # a writer has just ended
                    if _is_left(path.name, now - path.stat().st_mtime):
                        path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise StoreError(_reason(error)) from error
        self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):
            self._folder.rmdir()


class ArrowStore(Store):
    """A file system of pyarrow, such as a bucket."""

    def __init__(self, address: str) -> None:
        import pyarrow as pa
        from pyarrow import fs

        try:
            self._files, folder = fs.FileSystem.from_uri(address)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise StoreError(f"{shown(address)}: {_reason(error)}") from error
        self._folder = PurePosixPath(folder)
        self._errors: tuple[type[Exception], ...] = (OSError, pa.ArrowException)

    def _path(self, name: str) -> str:
        return str(self._folder / name)

    def write(self, name: str, data: bytes) -> None:
        part = part_of(name)
        try:
            if self._files.type_name not in ("s3", "gcs", "abfs"):
                self._files.create_dir(str(self._folder), recursive=True)
            with self._files.open_output_stream(self._path(part)) as stream:
                stream.write(data)
            self._files.move(self._path(part), self._path(name))
        except self._errors as error:
            with contextlib.suppress(*self._errors):
                self._files.delete_file(self._path(part))
            raise StoreError(_reason(error)) from error

    def read(self, name: str) -> bytes | None:
        try:
            with self._files.open_input_stream(self._path(name)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None
        except self._errors as error:
            raise StoreError(_reason(error)) from error

    def table(self, name: str) -> TableOfContents:
        try:
            with self._files.open_input_file(self._path(name)) as file:
                beginning = bytes(file.read(8))
                return table_of(beginning + bytes(file.read(header_bytes(beginning) - len(beginning))))
        except self._errors as error:
            raise StoreError(_reason(error)) from error

    def names(self) -> list[str]:
        return sorted(info.base_name for info in self._infos() if info.is_file and info.base_name.endswith(SUFFIX))

    def _infos(self) -> list[Any]:
        from pyarrow import fs

        try:
            found: list[Any] = self._files.get_file_info(fs.FileSelector(str(self._folder), allow_not_found=True))
        except self._errors as error:
            raise StoreError(_reason(error)) from error
        return found

    def delete_parts(self) -> None:
        now = time.time()
        for info in self._infos():
            if info.mtime is not None and _is_left(info.base_name, now - info.mtime.timestamp()):
                self.delete(info.base_name)

    def delete(self, name: str) -> None:
        try:
            self._files.delete_file(self._path(name))
        except FileNotFoundError:
            return
        except self._errors as error:
            raise StoreError(_reason(error)) from error


def below(address: str, name: str) -> str:
    """The address of a folder inside another one; options of an address stay at its end."""
    head, mark, options = address.partition("?") if "://" in address else (address, "", "")
    return f"{head.rstrip('/')}/{name}{mark}{options}"


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return shown(text.splitlines()[0])
