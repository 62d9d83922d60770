"""A driver: `phasefront run` in a session of its own, with the times of the lines that it prints."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from driving import MARK, marked

from tests.chaos.host import send, wait_for

SILENT_S = 45.0
"""30 s without progress or a stated reason, and what two busy cores may add."""
_CLOCK = re.compile(r"^\d\d:\d\d:\d\d ")
_PROGRESS = re.compile(r"^\d+/\d+ done, \d+ running, \d+ failed")
_CHANGING = re.compile(r", (?:[\d.e+]+ trials/s|about [^,]* left)")


class Driver:
    """One run of the command; it is started at once."""

    def __init__(
        self, arguments: Sequence[str], *, cwd: Path, environ: Mapping[str, str], inside: Sequence[str]
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.lines: list[tuple[float, str]] = []
        self.began = time.monotonic()
        self.ended = 0.0
        self.injected: list[str] = []
        """Kinds of the faults since its start."""
        self.sent: list[int] = []
        """Signals that were sent to it and may end it."""
        self._stopped: list[tuple[float, float]] = []
        self.process = subprocess.Popen(
            [*inside, sys.executable, "-m", "orchestrator", *arguments],
            cwd=cwd,
            env={**environ, MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.lines.append((time.monotonic(), line.decode(errors="replace").rstrip("\n")))

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in list(self.lines))

    @property
    def code(self) -> int | None:
        """The exit code, as a shell shows it; None while it runs."""
        code = self.process.poll()
        if code is not None and not self.ended:
            self.ended = time.monotonic()
        return code if code is None or code >= 0 else 128 - code

    def counts(self) -> tuple[int, int] | None:
        """Trials done and trials running, by its newest line of progress."""
        for _, line in reversed(list(self.lines)):
            found = re.search(r"(\d+)/\d+ done, (\d+) running", line)
            if found:
                return int(found[1]), int(found[2])
        return None

    def trains(self) -> bool:
        counts = self.counts()
        return counts is not None and counts[1] > 0

    def signal(self, number: int) -> None:
        """Send a signal to the driver alone."""
        self.sent.append(number)
        send([self.process.pid], number)

    def stopped(self, seconds: float) -> None:
        """Stop it for a while."""
        began = time.monotonic()
        send([self.process.pid], signal.SIGSTOP)
        time.sleep(seconds)
        send([self.process.pid], signal.SIGCONT)
        self._stopped.append((began, time.monotonic()))

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended in time."""
        ended = wait_for(lambda: self.code is not None, timeout_s)
        if ended:
            self._reader.join(10)
        return ended

    def silences(self) -> list[str]:
        """The times longer than SILENT_S in which it printed nothing new: no progress and no reason."""
        until = self.ended or time.monotonic()
        news, said = [self.began], ""
        for at, line in list(self.lines):
            text = _CHANGING.sub("", _CLOCK.sub("", line))
            # A line of progress with a note gives a reason: it may be repeated.
            if text != said or (_PROGRESS.match(text) and text.count(",") > 2):
                news.append(at)
            said = text
        news.append(until)
        found = []
        for before, after in pairwise(news):
            stopped = sum(max(0.0, min(after, b) - max(before, a)) for a, b in self._stopped)
            if after - before - stopped > SILENT_S:
                found.append(f"{after - before - stopped:.0f} s without news after {self._line_at(before)!r}")
        return found

    def _line_at(self, at: float) -> str:
        return next((line for when, line in self.lines if when == at), "its start")

    def left_behind(self) -> list[int]:
        """Processes that it started and that still live."""
        return [pid for pid in marked(self.mark) if pid != self.process.pid]

    def end(self) -> None:
        """Kill it with everything that it started."""
        for pid in {*marked(self.mark), *([self.process.pid] if self.process.poll() is None else [])}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(10)
