"""The CPUs, memory and GPUs of this machine that this process may use.

Slurm, Docker and Kubernetes restrict a process by CPU affinity (cpusets included) and by the quotas and limits of
control groups (cgroup v1 and v2). A limit applies to everything below its group, so the smallest one along the path
counts. `os.cpu_count` and the physical memory ignore all of this.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

UNKNOWN_MEMORY_BYTES = 8e9
"""Assumed where the operating system does not state its physical memory."""
_DEVICE = re.compile(r"\d|GPU-|MIG-")
"""How an entry of CUDA_VISIBLE_DEVICES that names a device begins."""


def usable_cpus(*, root: Path = Path("/"), allowed: int | None = None) -> int:
    """CPU cores that this process may keep busy: by its affinity and by the CPU quotas of its control groups.

    A quota of 1.5 CPUs counts as 1: a second worker would only slow down the first. Never less than 1.

    Args:
        root: where `proc` and `sys` are.
        allowed: number of cores in the affinity mask; None reads it.
    """
    if allowed is None:
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(root, "cpu") if (quota := _cpu_quota(folder)) is not None]
    return max(1, int(min([float(allowed), *quotas])))


def usable_memory_bytes(*, root: Path = Path("/"), physical: float | None = None) -> float:
    """Memory that this process and its children may use: the physical memory and the limits of its control groups.

    Args:
        root: where `proc` and `sys` are.
        physical: bytes of physical memory; None reads it.
    """
    if physical is None:
        known = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
        physical = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if known else UNKNOWN_MEMORY_BYTES
    limits = [limit for folder in _groups(root, "memory") if (limit := _memory_limit(folder)) is not None]
    return min([physical, *limits])


def visible_gpus() -> int:
    """NVIDIA devices of this machine that are visible to this process.

    As CUDA reads the variable, the entries from the first one on that names no device do not count; nor do those from
    the first one on that names a device again, as two workers would share it.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        ends = (k for k, name in enumerate(names) if not _DEVICE.match(name) or name in names[:k])
        return next(ends, len(names))
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The visible folders of the control groups that this process is in, for a controller ("cpu", "memory").

    The top of each mounted hierarchy is always among them: in a container it is the container's own group, even where
    `/proc/self/cgroup` shows the path outside of the container.
    """
    paths = _paths(_text(root / "proc/self/cgroup"))
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        place, source = before.split(), after.split()
        if len(place) < 5 or len(source) < 3:
            continue
        kind, options = source[0], source[2].split(",")
        if kind == "cgroup2":
            path = paths.get("")
        elif kind == "cgroup" and controller in options:
            path = paths.get(controller)
        else:
            continue
        top = root / _unescaped(place[4]).lstrip("/")
        yield top
        shown = PurePosixPath(_unescaped(place[3]))
        if path is not None and path.is_relative_to(shown) and ".." not in path.parts:
            folder = top
            for name in path.relative_to(shown).parts:
                folder = folder / name
                yield folder
    # Where /proc does not tell (a sandbox that hides it), the usual places.
    for usual in ("", controller):
        yield root / "sys/fs/cgroup" / usual


def _paths(text: str) -> dict[str, PurePosixPath]:
    """Controller -> path of this process's control group; the key of cgroup v2 is empty."""
    paths: dict[str, PurePosixPath] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths.update({name: PurePosixPath(path) for name in controllers.split(",")})
    return paths


def _cpu_quota(folder: Path) -> float | None:
    """CPUs that the group may use at the same time; None if it has no quota."""
    v2 = _text(folder / "cpu.max").split()
    quota, period = v2 if len(v2) == 2 else (_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    try:
        return float(quota) / float(period) if float(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def _memory_limit(folder: Path) -> float | None:
    """Bytes that the group may use; None if it has no limit."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = _text(folder / name).strip()
        if text.isdecimal():
            return float(text)
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:
        return ""


def _unescaped(path: str) -> str:
    """A path of `mountinfo`, where blanks are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
