"""Trials, rows and results that wait on disk while the record does not answer."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from orchestrator.records import CurveRows, TrialResult
from orchestrator.trial import Trial

SPOOL_BYTES = 1 << 30
"""Size at which the spool is full."""
MOST_WRITES = 100_000
"""Number of waiting writes at which the spool is full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Write:
    """One call of `begin`, `record` or `end`; exactly one field is set."""

    begun: tuple[Trial, ...] = ()
    rows: CurveRows | None = None
    results: tuple[TrialResult, ...] = ()


@dataclass(slots=True)
class _Waiting:
    held: Write | None
    """The write itself where it is in memory; None where it is in the file."""
    rows: int
    start: int = 0
    length: int = 0


class Spool:
    """A queue of writes. Rows and results are in a file without a name, which the system deletes with the process.

    Trials that begin stay in memory: the runner holds them anyway. So does what no longer fits on a full disk; the
    spool is full from then on.

    Args:
        folder: Where the file is; the system's temporary folder if it cannot be there.
        limit_bytes: Size at which the spool is full.
    """

    def __init__(self, folder: Path, *, limit_bytes: int = SPOOL_BYTES) -> None:
        self._folder, self._limit, self._size, self._broken = folder, limit_bytes, 0, False
        self._queue: deque[_Waiting] = deque()
        self.rows = 0
        """Metric rows that wait."""
        self._file = -1
        """Opened by the first write that it keeps."""

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def size(self) -> int:
        """Bytes that wait in the file."""
        return self._size

    @property
    def full(self) -> bool:
        """Whether no more should be added."""
        return self._broken or self._size >= self._limit or len(self._queue) >= MOST_WRITES

    def append(self, write: Write) -> None:
        """Add a write at the end."""
        rows = 0 if write.rows is None else write.rows.values.size
        self.rows += rows
        if write.begun or self._broken:
            self._queue.append(_Waiting(write, rows))
            return
        content = pickle.dumps((write.rows, write.results), protocol=pickle.HIGHEST_PROTOCOL)
        if not self._stored(content):
            self._broken = True
            self._queue.append(_Waiting(write, rows))
            return
        self._queue.append(_Waiting(None, rows, self._size, len(content)))
        self._size += len(content)

    def _stored(self, content: bytes) -> bool:
        """Put the content at the end of the file; False if the disk is full."""
        try:
            if self._file < 0:
                self._open()
            return os.pwrite(self._file, content, self._size) == len(content)
        except OSError:
            return False

    def _open(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file, name = tempfile.mkstemp(prefix="phasefront-spool-", dir=self._folder)
        except OSError:
            self._file, name = tempfile.mkstemp(prefix="phasefront-spool-")
        Path(name).unlink()

    def first(self) -> Write:
        """The oldest write, which stays in the queue."""
        waiting = self._queue[0]
        if waiting.held is not None:
            return waiting.held
        content = os.pread(self._file, waiting.length, waiting.start)
        rows, results = pickle.loads(content)  # written by this process
        return Write(rows=rows, results=results)

    def drop_first(self) -> None:
        """Remove the oldest write."""
        self.rows -= self._queue.popleft().rows

    def close(self) -> None:
        """Delete the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
