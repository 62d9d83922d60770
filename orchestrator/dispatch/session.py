"""The folder of a Ray that this program started: removed at the end of the run, or by a later one if it was killed.

Ray leaves a folder with logs and sockets for each `ray.init`. A locked file in it says that it is ours and that its
driver lives: the lock goes with the process. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from orchestrator.dispatch.reaper import MARKER, remove_session


class Session:
    """The session folder of this process's own Ray."""

    def __init__(self, folder: Path, mark: str) -> None:
        """Mark the folder; `mark` is in the environment of all processes of this Ray (`reaper.MARK`)."""
        self.folder = folder
        self._marker: IO[str] | None = None
        with contextlib.suppress(OSError):  # no locks there: the folder stays
            marker = (folder / MARKER).open("x")
            fcntl.flock(marker, fcntl.LOCK_EX)
            marker.write(mark)
            marker.flush()
            self._marker = marker

    def remove(self) -> None:
        """Remove the folder. This Ray has been shut down."""
        if self._marker is not None:
            remove_session(self.folder)
            self._marker.close()


def remove_left(folder: Path, lives: Callable[[str], object]) -> list[Path]:
    """Remove the sessions in this folder that are ours and whose drivers were killed; return them.

    Args:
        folder: Ray's temporary folder.
        lives: whether any process with this mark lives.
    """
    removed = []
    for marker in folder.glob(f"session_*/{MARKER}"):
        session = marker.parent
        with contextlib.suppress(OSError), _locked(marker) as mark:
            if session.is_symlink() or session.stat().st_uid != os.getuid() or not mark or lives(mark):
                continue
            remove_session(session)
            removed.append(session)
    return removed


@contextlib.contextmanager
def _locked(marker: Path) -> Iterator[str]:
    """Its content, under its lock.

    Raises:
        OSError: another process holds the lock, or there are no locks.
    """
    with marker.open("r") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file.read()
