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


def take_file_lock(database: Path, experiment_id: int) -> int | None:
    """Try to lock a file beside the database (`mlflow.db.1.phasefront.lock`); None if another process holds the lock.

    The lock is held until the returned file descriptor is closed; child processes do not inherit it. The file is not
    deleted. If the system or the file system has no such locks (some network mounts), or the file cannot be created,
    nothing is locked, and -1 is returned.
    """
    if sys.platform == "win32":
        return -1
    descriptor = -1
    try:
        # Read only, because another user may have created the file.
        file = database.with_name(f"{database.name}.{experiment_id}.phasefront.lock")
        descriptor = os.open(file, os.O_RDONLY | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
            return None if error.errno in _HELD else -1
    return descriptor


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
