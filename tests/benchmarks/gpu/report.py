"""The table of the benchmark, printed row by row, and the limits of time."""

from __future__ import annotations

import contextlib
import signal
import statistics
import time
from collections.abc import Iterator, Sequence

COLUMNS = ("case", "way", "measured", "range", "time per step", "peak memory", "notes")


class OverTimeError(BaseException):
    """The time of a row is over. Not an `Exception`: compilers and libraries catch those."""


class Report:
    """Prints each row as it is measured, so that what was measured survives an early end.

    Args:
        total_s: no row is measured after so many seconds, and none takes longer than until then.
        row_s: the longest time of one row.
    """

    def __init__(self, total_s: float, row_s: float) -> None:
        self._total_s, self._row_s = total_s, row_s
        self._ends = time.monotonic() + total_s

    def header(self) -> None:
        """The head of the table."""
        self.row(*COLUMNS)
        self.row(*["---"] * len(COLUMNS))

    def row(self, case: str, way: str = "", *cells: str) -> None:
        """One row; missing cells are empty."""
        filled = [case, way, *cells, *[""] * (len(COLUMNS) - 2 - len(cells))]
        print("| " + " | ".join(cell.replace("|", "/") for cell in filled) + " |", flush=True)

    def missing(self, case: str, way: str, why: str) -> None:
        """A row without a measurement."""
        self.row(case, way, "not measured", "", "", "", why)

    def limit(self, times: float = 1.0) -> tuple[float, str]:
        """Seconds that the next row may take, at most so many times those of a usual one, and what ends it."""
        row_s, left_s = times * self._row_s, self._ends - time.monotonic()
        if left_s < row_s:
            return left_s, f"the benchmark's {self._total_s:g} s are over"
        return row_s, f"the row's limit of {row_s:g} s is over"

    @contextlib.contextmanager
    def limited(self, times: float = 1.0) -> Iterator[None]:
        """What is measured here raises `OverTimeError` when the time of a row is over. For the main thread.

        A call of the operating system or of the GPU's driver is not interrupted.
        """
        room_s, why = self.limit(times)
        if room_s <= 0:
            raise OverTimeError(why)

        def stop(number: int, frame: object) -> None:
            raise OverTimeError(why)

        before = signal.signal(signal.SIGALRM, stop)
        # Again every second: an exception in a callback of the garbage collector is dropped.
        signal.setitimer(signal.ITIMER_REAL, room_s, 1.0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)


def number(value: float) -> str:
    """Three digits, with commas in large numbers."""
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def counted(count: int, noun: str) -> str:
    """`1 model`, `2 models`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}{'e' * noun.endswith('s')}s"


def middle(values: Sequence[float], unit: str = "") -> str:
    """The median."""
    return number(statistics.median(values)) + unit if values else "not measured"


def spread(values: Sequence[float]) -> str:
    """Range and number of values."""
    if len(values) < 2:
        return f"n = {len(values)}" if values else ""
    return f"{number(min(values))} - {number(max(values))}; n = {len(values)}"


def within(ratios: Sequence[float], share: float) -> str:
    """How many ratios are off 1 by at most `share`."""
    return f"{sum(abs(ratio - 1) <= share for ratio in ratios)} of {len(ratios)} within {share:.0%}"
