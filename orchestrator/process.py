"""Processes as other processes recognise them, so that it is known which of them have ended."""

from __future__ import annotations

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


def _state(pid: int) -> tuple[str, int] | None:
    """State and start time of a process; None if they cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
