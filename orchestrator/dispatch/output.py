"""What a worker prints, Python and native code alike: bounded on disk, and its end shown with a failure.

Ray attaches a worker's standard output and error to files that are opened for appending. A thread of the worker cuts
them when they are long; each file leaves at most one older part beside it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.dispatch.base import Event, PackFailed, PackProgress
from orchestrator.records import Status

LIMIT_BYTES = 5_000_000
"""Size at which a file is cut; its older part has the same size."""
_LOOK_S = 0.02
_BUSY_LOOK_S = 0.001
"""While a file grows quickly: a fast disk takes gigabytes in a second."""
LINES = 40
"""Lines of each file that a failure shows."""
_TAIL_BYTES = 6_000
_MARKS = (":job_id:", ":actor_name:", ":task_name:")
"""Beginnings of lines that Ray adds."""


def files() -> tuple[str, ...]:
    """The files that this process's standard output and error are attached to; none for terminals and pipes."""
    found = {}
    for number in (1, 2):
        with contextlib.suppress(OSError):
            state = os.fstat(number)
            if stat.S_ISREG(state.st_mode):
                found[state.st_dev, state.st_ino] = str(Path(f"/proc/self/fd/{number}").readlink())
    return tuple(found.values())


def keep_bounded(paths: Sequence[str]) -> None:
    """Cut these files from now on whenever they are longer than LIMIT_BYTES."""

    def watch() -> None:
        sizes = dict.fromkeys(paths, 0)
        pause_s = _LOOK_S
        while True:
            time.sleep(pause_s)
            pause_s = _LOOK_S
            for path in paths:
                with contextlib.suppress(OSError):  # a full disk, or the folder was removed
                    before, sizes[path] = sizes[path], os.stat(path).st_size  # noqa: PTH116 - it runs often
                    if sizes[path] - before > LIMIT_BYTES / 10 or sizes[path] > LIMIT_BYTES:
                        pause_s = _BUSY_LOOK_S
                    if sizes[path] > LIMIT_BYTES:
                        cut(path)
                        sizes[path] = 0

    if paths:
        threading.Thread(target=watch, name="phasefront output", daemon=True).start()


def cut(path: str) -> None:
    """Move the end of a file to `PATH.1` and empty it; processes that append to it go on at its new end."""
    with Path(path).open("r+b") as file:
        file.seek(-min(LIMIT_BYTES, os.fstat(file.fileno()).st_size), os.SEEK_END)
        Path(f"{path}.1").write_bytes(file.read(LIMIT_BYTES))
        file.truncate(0)


def told(events: Generator[Event, None, None], paths: Sequence[str]) -> Generator[Event, None, None]:
    """The events of a pack, where failures show what was printed since the last trial ended."""
    since = _sizes(paths)
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, PackFailed):
                event = replace(event, error=with_output(event.error, tail(paths, since)))
            elif isinstance(event, PackProgress) and event.results:
                if any(result.status is Status.FAILED for result in event.results):
                    output = tail(paths, since)
                    results = [
                        replace(result, error=with_output(result.error or "", output))
                        if result.status is Status.FAILED
                        else result
                        for result in event.results
                    ]
                    event = replace(event, results=tuple(results))
                since = _sizes(paths)
            yield event


def _sizes(paths: Sequence[str]) -> tuple[int, ...]:
    with contextlib.suppress(OSError):
        return tuple(Path(path).stat().st_size for path in paths)
    return ()


def tail(paths: Sequence[str], since: Sequence[int] = ()) -> str:
    """The last lines of each file, without what it held when it was `since` bytes long; empty if there are none."""
    lines: list[str] = []
    for path, start in zip(paths, since or [0] * len(paths), strict=True):
        with contextlib.suppress(OSError), Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            # It may have been cut meanwhile.
            file.seek(max(start if start <= size else 0, size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode(errors="replace")
            own = [line for line in text.splitlines() if line.strip() and not line.startswith(_MARKS)]
            lines += own[-LINES:]
    return "\n".join(lines)


def with_output(error: str, output: str) -> str:
    """The text of a failure, with the last output of its worker before it: the last line stays that of the error."""
    return f"Last output of the worker:\n{output}\n\n{error}" if output else error
