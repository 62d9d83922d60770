"""Ends the processes of a local Ray whose driver was killed: `python reaper.py MARK`, run by `ray_connection`.

Ray's own processes follow a killed driver, but its agents take a minute to notice. This process
waits on a pipe that closes when the driver ends, however it ends, and then kills every process
that carries the driver's mark in its environment. Standard library only: it must start quickly.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

MARK = "PHASEFRONT_LOCAL_RAY"
"""Environment variable that all processes of a local Ray inherit from the driver that started it."""
CLEAN = b"clean"
"""Sent by a driver that has shut down its own Ray."""
QUIET_S = 0.5
"""Without a marked process for this long, all are gone (one may have been starting another)."""


def marked(mark: str) -> list[int]:
    """Processes of this user that carry the mark; needs Linux's /proc."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def main(mark: str) -> None:
    """Wait for the end of the driver, then kill what is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    quiet_s = 0.0 if sys.stdin.buffer.read() == CLEAN else QUIET_S
    quiet_since = time.monotonic()
    while True:
        for pid in marked(mark):
            quiet_since = time.monotonic()
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() - quiet_since >= quiet_s:
            return
        time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1])
