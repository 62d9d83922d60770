"""One driver of an experiment at a time: locks that the system releases when their process dies."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.tracking.bulk_sql import Bulk

if sys.platform != "win32":  # Windows has no lock that is released when its process dies
    import fcntl

_HELD = (errno.EWOULDBLOCK, errno.EACCES)


class FileLock:
    """An advisory lock on an empty file of its own, which is not deleted when the lock is released.

    Child processes do not inherit the lock. Nothing is locked if the system or the file system has no such locks (some
    network mounts), or if the file cannot be created.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Try to take the lock, without waiting; False if another process holds it."""
        if sys.platform == "win32" or self._descriptor is not None:
            return True
        try:
            # Read only, because another user may have created the file.
            descriptor = os.open(self._file, os.O_RDONLY | os.O_CREAT, 0o666)
        except OSError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            return error.errno not in _HELD
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Release the lock if we hold it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def lock_file(database: Path, experiment_id: int) -> Path:
    """The lock file of an experiment, beside the database: `mlflow.db.1.phasefront.lock`."""
    return database.with_name(f"{database.name}.{experiment_id}.phasefront.lock")


def take_session_lock(bulk: Bulk, experiment_id: int) -> bool:
    """Try to take PostgreSQL's advisory lock for the life of this connection; False if another connection holds it.

    The server releases it when the connection ends, also when the process dies.
    """
    ((database, schema),) = bulk.query("SELECT current_database(), current_schema()")
    text = f"phasefront/{database}/{schema}/{experiment_id}"
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)
    ((taken,),) = bulk.query("SELECT pg_try_advisory_lock(CAST(? AS bigint))", key)
    return bool(taken)


def taken(uri: str, experiment: str) -> UserError:
    """Another driver has locked the experiment."""
    return UserError(
        f"another phasefront run is writing to this experiment ({experiment!r})",
        place=uri,
        next_step="wait until it has ended, or choose another experiment: --set tracking.experiment=NAME",
    )
