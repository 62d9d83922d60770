"""The locks of versions before the lease: respected, so that a driver of such a version and a present one do not meet.

They lock an experiment for the life of a process, or of its connection. A present driver holds the same lock where it
can, and the lease decides between present drivers.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from pathlib import Path

from orchestrator.tracking.bulk_sql import Bulk

if sys.platform != "win32":
    import fcntl

_HELD = (errno.EWOULDBLOCK, errno.EACCES)


def take_file_lock(database: Path, experiment_id: int) -> int | None:
    """Lock the file that an earlier version has left beside the database (`mlflow.db.1.phasefront.lock`).

    Returns:
        The descriptor, which holds the lock until it is closed; -1 if there is no such file, or it cannot be locked;
        None if another process holds the lock.
    """
    if sys.platform == "win32":
        return -1
    file = database.with_name(f"{database.name}.{experiment_id}.phasefront.lock")
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        return None if error.errno in _HELD else -1
    return descriptor


def take_session_lock(bulk: Bulk, experiment_id: int) -> bool:
    """Take PostgreSQL's advisory lock for the life of this connection; False if another connection holds it."""
    ((database, schema),) = bulk.query("SELECT current_database(), current_schema()")
    text = f"phasefront/{database}/{schema}/{experiment_id}"
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)
    ((locked,),) = bulk.query("SELECT pg_try_advisory_lock(CAST(? AS bigint))", key)
    return bool(locked)
