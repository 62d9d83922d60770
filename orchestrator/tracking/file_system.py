"""The file system that a SQLite file is on, and the journal mode that is safe there.

SQLite's write-ahead log needs memory that all its processes share, so it can corrupt a database that two hosts open, as
a driver on a compute node and `mlflow ui` on a login node do (https://sqlite.org/wal.html). On a network file system
the rollback journal is used: it depends on nothing but the file system's locks.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

_NETWORK = re.compile(
    "9p|acfs|afpfs|afs|beegfs.*|ceph|cifs|coda|davfs|gfs2?|glusterfs|gpfs|lustre|ncpfs|nfs[34]?|ocfs2|orangefs|panfs|"
    "prl_fs|pvfs2|smb[23]|smbfs|vboxsf|virtiofs|vmhgfs|wekafs"
)
"""Types of file systems that several hosts, or a virtual machine and its host, may share."""
_LOCAL_FUSE = re.compile("bindfs|encfs|exfat|ext[24]|fuse-overlayfs|gocryptfs|mergerfs|ntfs|ntfs-3g|unionfs")
"""Subtypes of FUSE on local disks; any other is taken for a network file system (sshfs, s3fs, gcsfuse, rclone, ...)."""

MOUNTINFO = Path("/proc/self/mountinfo")

JournalMode = Literal["WAL", "DELETE"]


def file_system(path: Path, mountinfo: str) -> str:
    """The type of the file system that an absolute path without links is on; empty if it is not found.

    Args:
        path: It need not exist.
        mountinfo: The content of `/proc/self/mountinfo`, see proc_pid_mountinfo(5).
    """
    longest, found = -1, ""
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields, of_device = left.split(" "), right.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        # Of equal mount points the last one hides the others.
        if len(point.parts) >= longest and path.is_relative_to(point):
            longest, found = len(point.parts), of_device[0]
    return found


def is_network(kind: str) -> bool:
    """Whether several hosts may share a file system of this type."""
    name, _, subtype = kind.partition(".")
    if name == "fuse":
        return not _LOCAL_FUSE.fullmatch(subtype)
    return bool(_NETWORK.fullmatch(name))


def network_file_system(file: Path) -> str | None:
    """The type of the network file system that a file is on; None on any other, and where that cannot be known."""
    try:
        kind = file_system(file.resolve(), MOUNTINFO.read_text(errors="surrogateescape"))
    except OSError:  # not Linux
        return None
    return kind if is_network(kind) else None


def journal_mode(file: Path) -> JournalMode:
    """The journal mode for a SQLite file, which need not exist."""
    return "WAL" if network_file_system(file) is None else "DELETE"
