"""Displays the progress of a run: live on a terminal, as plain lines in a log."""

from __future__ import annotations

import contextlib
import html
import math
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TextIO

LINE_EVERY_S = 5.0
"""The least time between two plain lines."""
STILL_EVERY_S = 25.0
"""A step that blocks the run, such as the start of Ray, is mentioned after so long without a line, and again."""
PAGE_EVERY_S = 0.3
"""The least time between two drawings in a notebook."""
RATE_WINDOW_S = 60.0
"""Trials/s are averaged over the last minute, so that the time left follows a change of pace."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The state of a run at one moment."""

    total: int
    """Trials of the sweep, including those that had finished before."""
    skipped: int = 0
    """Finished before this run."""
    done: int = 0
    """Finished in this run."""
    running: int = 0
    failed: int = 0
    workers: int = 0
    phases: Mapping[str, int] = field(default_factory=dict)
    """Label -> number of finished trials, including earlier ones."""
    note: str = ""
    """Anything else to display, such as "starting workers"."""
    left_s: float | None = None
    """Estimated seconds of training left; None if unknown."""

    @property
    def trials_left(self) -> int:
        """Trials that have not ended."""
        return self.total - self.skipped - self.done - self.failed


def duration(seconds: float) -> str:
    """Format a duration: "47 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 trial", "2 trials"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def amount_of_bytes(count: float) -> str:
    """Format an amount of memory."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def line(snapshot: Snapshot, *, rate: float | None) -> str:
    """Format the state of a run as one line, without the time of day."""
    parts = [f"{snapshot.skipped + snapshot.done}/{snapshot.total} done"]
    parts += [f"{snapshot.running} running", f"{snapshot.failed} failed"]
    if rate:
        parts.append(f"{rate:.3g} trials/s")
    left_s = time_left(snapshot, rate)
    if left_s is not None:
        parts.append(f"about {duration(left_s)} left")
    if snapshot.note:
        parts.append(snapshot.note)
    return ", ".join(parts)


def time_left(snapshot: Snapshot, rate: float | None) -> float | None:
    """Seconds until the end; None if nothing is left or known.

    The longer of two estimates: the plan knows of expensive trials that are left; only the rate shows the time spent
    on a search's computations, on recording, and on trainings that take longer than planned.
    """
    if snapshot.trials_left <= 0:
        return None
    by_rate_s = snapshot.trials_left / rate if rate else 0.0
    return max(by_rate_s, snapshot.left_s or 0.0) or None


def _last_line(snapshot: Snapshot) -> str:
    """The state at the end of a run, without rate and time left."""
    return line(replace(snapshot, left_s=None), rate=None)


def phase_counts(phases: Mapping[str, int]) -> str:
    """The labels with their counts, most frequent first."""
    ranked = sorted(phases.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{label} {count}" for label, count in ranked)


class Rate:
    """Trials per second over a sliding window."""

    def __init__(self, window_s: float = RATE_WINDOW_S) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, now: float, snapshot: Snapshot) -> float | None:
        """The rate of a run, not counting the time before it had workers."""
        return self.update(now, snapshot.done + snapshot.failed) if snapshot.workers else None

    def update(self, now: float, ended: int) -> float | None:
        """The rate after `ended` trials at time `now`; None if unknown."""
        if not self._seen or now - self._seen[-1][0] >= self._window_s / 60:
            self._seen.append((now, ended))
        while len(self._seen) > 2 and now - self._seen[1][0] >= self._window_s:
            self._seen.popleft()
        start, before = self._seen[0]
        return (ended - before) / (now - start) if ended > before and now > start else None


class ProgressDisplay(ABC):
    """Displays the progress of a run."""

    @abstractmethod
    def update(self, snapshot: Snapshot) -> None:
        """Display a new state; called often."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Print a message once."""

    @abstractmethod
    def close(self) -> None:
        """Show the last state and release the display."""


class Silent(ProgressDisplay):
    """Shows nothing."""

    def update(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Lines(ProgressDisplay):
    """A plain line every few seconds, the first and the last state always, and once: for a job's log."""

    def __init__(
        self,
        stream: TextIO,
        *,
        every_s: float = LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], str] = lambda: time.strftime("%H:%M:%S"),
    ) -> None:
        self._stream, self._every_s, self._clock, self._wall_clock = stream, every_s, clock, wall_clock
        self._rate = Rate()
        self._shown_at: float | None = None
        self._shown: tuple[int, ...] = ()
        self._latest: Snapshot | None = None
        self._closed = False

    def update(self, snapshot: Snapshot) -> None:
        """Print the state if the last line is old enough; `close` prints that of a whole sweep."""
        if self._closed:
            return
        now = self._clock()
        rate = self._rate.of(now, snapshot)
        self._latest = snapshot
        old = self._shown_at is None or now - self._shown_at >= self._every_s
        if old and (snapshot.trials_left > 0 or not snapshot.total):
            self._shown_at, self._shown = now, _counts(snapshot)
            self._print(line(snapshot, rate=rate))

    def say(self, text: str) -> None:
        """Print the text now."""
        self._print(text)

    def close(self) -> None:
        """Print the last state, unless it was printed."""
        if self._latest is not None and _counts(self._latest) != self._shown:
            counts = phase_counts(self._latest.phases)
            self._print(_last_line(self._latest) + (f" ({counts})" if counts else ""))
        self._closed = True
        self._latest = None

    def _print(self, text: str) -> None:
        print(f"{self._wall_clock()} {text}", file=self._stream, flush=True)


def _counts(snapshot: Snapshot) -> tuple[int, ...]:
    return snapshot.total, snapshot.skipped, snapshot.done, snapshot.running, snapshot.failed


class Live(ProgressDisplay):
    """A bar that is redrawn in place on a terminal."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._clock, self._rate = clock, Rate()
        self._console = Console(file=stream)
        self._live = RichLive(console=self._console, refresh_per_second=4, transient=False)
        self._live.start()

    def update(self, snapshot: Snapshot) -> None:
        """Redraw."""
        rate = self._rate.of(self._clock(), snapshot)
        self._live.update(_panel(snapshot, rate))

    def say(self, text: str) -> None:
        """Print the text above the bar."""
        self._console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Keep the last drawing and release the terminal."""
        self._live.stop()


def _panel(snapshot: Snapshot, rate: float | None) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    ended = snapshot.skipped + snapshot.done + snapshot.failed
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=max(1, snapshot.total), completed=ended, width=40), Text(line(snapshot, rate=rate)))
    counts = phase_counts(snapshot.phases)
    return Group(bar, Text(counts, style="dim")) if counts else bar


class Page(ProgressDisplay):
    """A bar that is redrawn in place in the output of a notebook's cell.

    Args:
        show: shows HTML and returns an object whose `update` replaces it.
        clock: seconds by a monotonic clock.
    """

    def __init__(self, show: Callable[[str], Any], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._clock, self._rate = show, clock, Rate()
        self._handle: Any = None
        self._shown_at = -math.inf
        self._latest: Snapshot | None = None

    def update(self, snapshot: Snapshot) -> None:
        """Redraw, a few times a second at most."""
        now = self._clock()
        rate = self._rate.of(now, snapshot)
        self._latest = snapshot
        if now - self._shown_at >= PAGE_EVERY_S:
            self._shown_at = now
            self._draw(snapshot, line(snapshot, rate=rate))

    def say(self, text: str) -> None:
        """Print the text."""
        print(text, flush=True)

    def close(self) -> None:
        """Show the last state."""
        if self._latest is not None:
            self._draw(self._latest, _last_line(self._latest))
            self._latest = None

    def _draw(self, snapshot: Snapshot, text: str) -> None:
        ended = snapshot.skipped + snapshot.done + snapshot.failed
        bar = f'<progress value="{ended}" max="{max(1, snapshot.total)}" style="width: 24em"></progress>'
        counts = html.escape(phase_counts(snapshot.phases))
        page = f"<div>{bar} {html.escape(text)}<br><small>{counts}</small></div>"
        if self._handle is None:
            self._handle = self._show(page)
        else:
            self._handle.update(page)


def _notebook() -> Callable[[str], Any] | None:
    """What shows HTML in the notebook that this process is the kernel of; None where there is none."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is None:
        return None
    from IPython.display import HTML, display

    class Handle:
        def __init__(self, page: str) -> None:
            self._inner = display(HTML(page), display_id=True)

        def update(self, page: str) -> None:
            self._inner.update(HTML(page))

    return Handle


def for_stream(stream: TextIO, *, quiet: bool = False) -> ProgressDisplay:
    """The display for a stream, or for the notebook that it belongs to."""
    if quiet:
        return Silent()
    show = _notebook()
    if show is not None:
        return Page(show)
    return Live(stream) if stream.isatty() else Lines(stream)


@contextlib.contextmanager
def still(doing: str, say: Callable[[str], None], *, every_s: float = STILL_EVERY_S) -> Iterator[Callable[[str], None]]:
    """While the block runs, say what it is doing whenever nothing else was said for some time.

    Args:
        doing: what the block does, as in "starting workers".
        say: prints a line; called from another thread.
        every_s: seconds without a line.

    Yields:
        A `say` for lines of the block itself, after which the next reminder waits.
    """
    began = said_at = time.monotonic()
    ended = threading.Event()

    def say_other(text: str) -> None:
        nonlocal said_at
        said_at = time.monotonic()
        say(text)

    def remind() -> None:
        while not ended.wait(max(0.0, said_at + every_s - time.monotonic())):
            if time.monotonic() - said_at >= every_s:
                say_other(f"still {doing}, for {duration(time.monotonic() - began)} so far")

    reminder = threading.Thread(target=remind, name="still", daemon=True)
    reminder.start()
    try:
        yield say_other
    finally:
        ended.set()
        reminder.join()
