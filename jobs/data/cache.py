"""The folder of generated and downloaded data sets; one process of a machine makes each of them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def cache_folder() -> Path:
    """The folder of generated and downloaded data sets: $PHASEFRONT_DATA, or one in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PHASEFRONT_DATA") or cache / "phasefront" / "data")


def made(name: str, is_there: Callable[[], bool], make: Callable[[], None]) -> None:
    """Make a data set that is not there; of processes that need it at once one makes it, and the others wait.

    The lock ends with the process that holds it. Where the file system has no locks, each process makes its own.

    Args:
        name: of the data set; a file name.
        is_there: whether it is complete.
        make: makes it; what it writes must appear whole (a file that is renamed).
    """
    if is_there():
        return
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("ab") as lock:
        if sys.platform != "win32":
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_there():
            make()
