"""Processor time of a program with all that it starts."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

LOOK_S = 0.5


class ProcessorTime:
    """Seconds of this process and of its descendants, ended ones too; needs Linux's /proc.

    `resource.getrusage` leaves out the workers of Ray: their parent does not wait for them. So a thread looks at
    all descendants, and one that has ended counts as last seen: what it used in the last LOOK_S is missing.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], float] = {}
        self._lock, self._left = threading.Lock(), threading.Event()

    def __enter__(self) -> ProcessorTime:
        threading.Thread(target=self._watch, name="processor time", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()

    def _watch(self) -> None:
        while not self._left.wait(LOOK_S):
            self.seconds()

    def seconds(self) -> float:
        """Used so far."""
        with self._lock:
            self._seen.update(used(os.getpid()))
            return sum(self._seen.values())


def used(root: int) -> Iterator[tuple[tuple[int, int], float]]:
    """A process and its descendants that live: id and start, which tell it from a later one of this id, and seconds."""
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    processes: dict[int, list[str]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            processes[int(stat.parent.name)] = stat.read_text().rpartition(")")[2].split()  # from the third on: proc(5)
    family = {root}
    while more := {process for process, values in processes.items() if int(values[1]) in family} - family:
        family |= more
    for process in family & processes.keys():
        user, system, started = (int(processes[process][k]) for k in (11, 12, 19))
        yield (process, started), tick_s * (user + system)
