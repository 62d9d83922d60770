"""Ends the processes that a killed process leaves behind: `python reaper.py ...`, a process of its own.

For a local Ray: Ray's own processes follow a killed driver, but its agents take a minute to notice. The reaper waits on
a pipe that closes when the driver ends, however it ends, and then kills every process that carries the driver's mark in
its environment, and every child of the raylet that the driver has named: Ray's agents set their title, which can
overwrite the mark. For a worker it waits for the end of its process, and kills what trials have started and left there.
Standard library only: it must start quickly.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

MARK = "PHASEFRONT_LOCAL_RAY"
"""Environment variable that all processes of a local Ray inherit from the driver that started it."""
WORKER_MARK = "PHASEFRONT_WORKER"
"""The same for what a worker starts."""
MARKER = "phasefront-driver"
"""The file in a session folder of Ray that says whose it is (see `session`)."""
CLEAN = b"clean"
"""Sent by a driver that has shut down its own Ray."""
QUIET_S = 0.5
"""Without a marked process for this long, all are gone (one may have been starting another)."""
LOOK_S = 0.5
"""How often it is seen whether a worker lives."""


def marked(mark: str, name: str = MARK, session: int = 0) -> list[int]:
    """Processes of this user that carry the mark, or belong to the session; needs Linux's /proc."""
    wanted = f"{name}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if wanted in (folder / "environ").read_bytes().split(b"\0") or (session and _stat(folder)[3] == session):
                found.append(int(folder.name))
    return found


def _stat(folder: Path) -> list[int]:
    """The numbers of a process from its parent's id on: its session is the third after that, its start the 19th."""
    state, *numbers = (folder / "stat").read_text().rpartition(")")[2].split()
    if state == "Z":
        raise ProcessLookupError
    return [0, *map(int, numbers)]


def children(parent: int) -> list[tuple[int, int]]:
    """The children of a process, each with its start time in clock ticks, which tells it from a later one of its id."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            numbers = _stat(folder)
            if numbers[1] == parent:
                found.append((int(folder.name), numbers[19]))
    return found


def named(known: list[tuple[int, int]]) -> bytes:
    """The processes as a line for the input of `after_driver`."""
    return b" ".join(b"%d:%d" % process for process in known) + b"\n"


def guard_children() -> None:
    """Have everything killed that this process starts, and that still runs when it has ended, however it ends."""
    if not Path("/proc/self/environ").exists():
        return
    with contextlib.suppress(OSError):  # it leads a session already
        os.setsid()  # its forks do not carry the mark, but belong to its session
    session = os.getpid() if os.getsid(0) == os.getpid() else 0
    mark = uuid.uuid4().hex
    started = _stat(Path("/proc/self"))[19]
    command = [sys.executable, "-I", "-S", __file__, mark, str(os.getpid()), str(started), str(session)]
    subprocess.run(command, stdin=subprocess.DEVNULL, start_new_session=True, check=False)
    os.environ[WORKER_MARK] = mark


def after_driver(mark: str, driver: int) -> None:
    """Wait for the end of the driver, then kill what is left of its Ray.

    The driver sends lines of `named`, and `CLEAN` after the last of them if it has shut down its Ray.

    A driver that was killed before it could mark its session folder leaves one that no later run would remove: the
    folder has the driver's process id at the end of its name, and is newer than this process.
    """
    began = time.time()
    *lines, last = sys.stdin.buffer.read().split(b"\n")
    clean = last == CLEAN
    for pid, _, started in (process.partition(b":") for line in lines for process in line.split()):
        with contextlib.suppress(OSError):
            if _stat(Path(f"/proc/{int(pid)}"))[19] == int(started):
                os.kill(int(pid), signal.SIGKILL)
    _kill(mark, MARK, 0, quiet_s=0.0 if clean else QUIET_S)
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"  # as Ray has it
    for session in () if clean else folder.glob(f"session_*_{driver}"):
        with contextlib.suppress(OSError):
            status = session.lstat()
            if status.st_uid == os.getuid() and status.st_mtime >= began and not (session / MARKER).exists():
                remove_session(session)


def remove_session(session: Path) -> None:
    """Remove a session folder of Ray, and the link to the latest one if it is that."""
    shutil.rmtree(session, ignore_errors=True)
    latest = session.parent / "session_latest"
    with contextlib.suppress(OSError):
        if latest.is_symlink() and latest.readlink() == session:
            latest.unlink()


def after_worker(mark: str, worker: int, started: int, session: int) -> None:
    """Wait in the background for the end of the worker, then kill what it has left."""
    if os.fork():  # Ray kills the children of a worker: this must not be one
        return
    with contextlib.suppress(OSError):
        while _stat(Path(f"/proc/{worker}"))[19] == started:
            time.sleep(LOOK_S)
    _kill(mark, WORKER_MARK, session, quiet_s=QUIET_S)


def _kill(mark: str, name: str, session: int, *, quiet_s: float) -> None:
    quiet_since = time.monotonic()
    while True:
        for pid in marked(mark, name, session):
            quiet_since = time.monotonic()
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() - quiet_since >= quiet_s:
            return
        time.sleep(0.1)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if len(sys.argv) == 3:
        after_driver(sys.argv[1], int(sys.argv[2]))
    else:
        after_worker(sys.argv[1], *map(int, sys.argv[2:]))
