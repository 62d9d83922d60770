"""The file system that a SQLite file is on, the journal mode that is safe there, and files with several names.

SQLite's write-ahead log needs memory that all its processes share, so it can corrupt a database that two hosts open, as
a driver on a compute node and `mlflow ui` on a login node do (https://sqlite.org/wal.html). On a network file system
the rollback journal is used: it depends on nothing but the file system's locks.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

_NETWORK = re.compile(
    "9p|acfs|afpfs|afs|beegfs.*|ceph|cifs|coda|davfs|gfs2?|glusterfs|gpfs|lustre|ncpfs|nfs[34]?|ocfs2|orangefs|panfs|"
    "prl_fs|pvfs2|smb[23]|smbfs|vboxsf|virtiofs|vmhgfs|wekafs"
)
"""Types of file systems that several hosts, or a virtual machine and its host, may share."""
_LOCAL_FUSE = re.compile("bindfs|encfs|exfat|ext[24]|fuse-overlayfs|gocryptfs|mergerfs|ntfs|ntfs-3g|unionfs")
"""Subtypes of FUSE on local disks; any other is taken for a network file system (sshfs, s3fs, gcsfuse, rclone, ...)."""

MOUNTINFO = Path("/proc/self/mountinfo")

JournalMode = Literal["WAL", "DELETE"]


class Mount(NamedTuple):
    """A mounted file system, or a folder or file that is mounted by itself (a bind mount)."""

    point: Path
    kind: str
    """Type of its file system."""


def mount_of(path: Path, mountinfo: str) -> Mount | None:
    """The mount that an absolute path without links is on; None if it is not found.

    Args:
        path: It need not exist.
        mountinfo: The content of `/proc/self/mountinfo`, see proc_pid_mountinfo(5).
    """
    found: Mount | None = None
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields, of_device = left.split(" "), right.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        # Of equal mount points the last one hides the others.
        if path.is_relative_to(point) and (found is None or len(point.parts) >= len(found.point.parts)):
            found = Mount(point, of_device[0])
    return found


def is_network(kind: str) -> bool:
    """Whether several hosts may share a file system of this type."""
    name, _, subtype = kind.partition(".")
    if name == "fuse":
        return not _LOCAL_FUSE.fullmatch(subtype)
    return bool(_NETWORK.fullmatch(name))


def network_file_system(file: Path) -> str | None:
    """The type of the network file system that a file is on; None on any other, and where that cannot be known."""
    mount = _mount(file)
    return mount.kind if mount and is_network(mount.kind) else None


def _mount(file: Path) -> Mount | None:
    try:
        return mount_of(file.resolve(), MOUNTINFO.read_text(errors="surrogateescape"))
    except OSError:  # not Linux
        return None


def other_names(file: Path) -> str:
    """Why a file can be opened by names that SQLite cannot know, in words; empty if it cannot.

    SQLite keeps its journal beside the name by which it was opened (symbolic links are followed): under another name it
    finds neither the newest transactions nor the locks of other processes, and corrupts the database.
    """
    try:
        links = file.stat().st_nlink
    except OSError:  # it does not exist yet
        return ""
    if links > 1:
        return f"it has {links} names (hard links)"
    mount = _mount(file)
    return "it is mounted by itself, without its folder" if mount and mount.point == file.resolve() else ""


def journal_mode(file: Path) -> JournalMode:
    """The journal mode for a SQLite file, which need not exist."""
    return "WAL" if network_file_system(file) is None else "DELETE"
