"""One writer to an experiment at a time: a lock that the system lets go of when its process dies."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.tracking.bulk_sql import Bulk

try:
    import fcntl
except ImportError:  # a system without it has no lock that dies with its process
    fcntl = None  # type: ignore[assignment]

_HELD = (errno.EWOULDBLOCK, errno.EACCES)


class FileLock:
    """An advisory lock on a file of its own, which stays there, empty, when the lock is let go of.

    A process that is started meanwhile does not inherit it. Where the system or the file's file system
    knows no such locks (some network mounts), or the file cannot be made, there is none.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Whether it is ours; at once."""
        if self._descriptor is not None or fcntl is None:
            return True
        try:
            # Read only, as another user may have made the file; a descriptor of Python's is not inherited.
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
        """Let go of it, if it is ours."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def lock_file(database: Path, experiment_id: int) -> Path:
    """Beside the database: `mlflow.db.1.phasefront.lock`."""
    return database.with_name(f"{database.name}.{experiment_id}.phasefront.lock")


def take_session_lock(bulk: Bulk, experiment_id: int) -> bool:
    """PostgreSQL's advisory lock for this connection's life; whether it is ours.

    The server lets go of it when the connection ends, so at once when the process dies.
    """
    ((database, schema),) = bulk.query("SELECT current_database(), current_schema()")
    text = f"phasefront/{database}/{schema}/{experiment_id}"
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)
    ((taken,),) = bulk.query("SELECT pg_try_advisory_lock(CAST(? AS bigint))", key)
    return bool(taken)


def taken(uri: str, experiment: str) -> UserError:
    """Another driver writes to the experiment."""
    return UserError(
        f"another phasefront run writes to this experiment ({experiment!r})",
        place=uri,
        next_step="wait until it has ended, or choose another experiment: --set tracking.experiment=NAME",
    )
