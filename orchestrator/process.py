"""Processes as other processes recognise them, so that it is known which of them have ended."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

LONGEST_HOST = 100


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process, as others can recognise it."""

    host: str
    machine: str
    """Boot id and process namespace: the same text where process ids mean the same; empty if unknown."""
    pid: int
    started: int
    """Clock ticks from the machine's boot to the process's start, because process ids are used again; 0 if unknown."""

    @property
    def text(self) -> str:
        """It in one line, as a tag of a run."""
        return f"{self.host} {self.pid} {self.started}"

    @classmethod
    def this(cls) -> Process:
        """The present process."""
        host, pid = socket.gethostname()[:LONGEST_HOST], os.getpid()
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            machine = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
        except OSError:  # not Linux
            return cls(host=host, machine="", pid=pid, started=0)
        state = _state(pid)
        return cls(host=host, machine=machine, pid=pid, started=state[1] if state else 0)

    def is_dead(self, seen_by: Process) -> bool:
        """Whether the process has certainly ended; False where `seen_by` cannot know."""
        if not self.machine or self.machine != seen_by.machine:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # another user's
            pass
        state = _state(self.pid)
        return state is not None and (state[0] in "ZX" or state[1] != self.started)


_SQLITE = b"SQLite format 3\0"


def lock_holders() -> list[str]:
    """The other processes that have locked a SQLite file that this one has open, writers only where there are any."""
    files: set[str] = set()
    holders: dict[str, dict[str, None]] = {"WRITE": {}, "READ": {}}
    with contextlib.suppress(OSError, ValueError):  # not Linux, or it hides this
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile, or a pipe
                # Read by its number: to open and close the file anew would end this process's own locks.
                if os.pread(int(entry.name), len(_SQLITE), 0) == _SQLITE:
                    file = entry.readlink()
                    beside = (file, file.with_name(f"{file.name}-shm"))  # where it has a write-ahead log
                    files |= {str(path.stat().st_ino) for path in beside if path.exists()}
        for line in Path("/proc/locks").read_text().splitlines():
            _, _, _, mode, pid, place, *_ = line.replace("-> ", "").split()
            if "->" not in line and place.rpartition(":")[2] in files and int(pid) not in (-1, 0, os.getpid()):
                holders[mode][pid] = None
    return [f"process {pid}{_name(pid)}" for pid in holders["WRITE"] or holders["READ"]]


def _name(pid: str) -> str:
    with contextlib.suppress(OSError):
        return f" ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    return ""


def _state(pid: int) -> tuple[str, int] | None:
    """State and start time of a process; None if they cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
