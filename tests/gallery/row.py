"""A row of the gallery: its sweeps, and what is found in their results beside what is expected."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

Verdict = Literal["shows", "does not show", "not shown (interval)"]
SHOWS: Verdict = "shows"
DOES_NOT: Verdict = "does not show"
UNDECIDED: Verdict = "not shown (interval)"
LEVEL = 0.95
"""Of every interval."""
LEAST = 0.95
"""Share of trials or inputs for which a finding must hold where "every" and "not every" are both accepted."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a picture: the line that it belongs to, its place, what is found there and what is expected."""

    found: float
    low: float
    high: float
    """The interval of `found`; both equal to it where it is exact."""
    series: str = ""
    x: float = math.nan
    curve: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Finding(Point):
    """One comparison of a row; a point of the row's picture where it has a series."""

    what: str
    expected: str
    n: int
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A further picture of a row."""

    points: Callable[[Sequence[Any]], Iterable[Point]]
    """From the results of the row's sweeps."""
    axes: tuple[str, str]
    scale: Literal["log", "linear"] = "log"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A phenomenon."""

    number: int
    name: str
    source: str
    sweeps: tuple[str, ...]
    """Files in configs/."""
    check: Callable[[Sequence[Any]], Iterable[Finding]]
    """From the results of the sweeps, as of `phasefront.load`, in the order of `sweeps`."""
    axes: tuple[str, str] = ("", "")
    """Labels of the picture."""
    scale: Literal["log", "linear"] = "log"
    """Of its vertical axis; the horizontal one is logarithmic."""
    absent: Mapping[str, Verdict] | None = None
    """What does not show at this size, by the name of the finding; docs/gallery.md reports it."""
    either: Mapping[str, Verdict] | None = None
    """A second verdict that is accepted, by the name of the finding: so little decides that rounding may, which differs
    between processors and packs. docs/gallery.md lists these findings as not decided."""
    least: Mapping[str, float] | None = None
    """Below this, a finding is off whatever its verdict, by its name: of those that hold for every trial or not."""
    pictures: Mapping[str, Picture] | None = None
    """Further pictures, by the name of their file."""
    notes: Callable[[Sequence[Any]], Iterable[str]] | None = None
    """Further lines that are printed, from the results of the row's sweeps."""

    def off(self, findings: Sequence[Finding]) -> list[Finding]:
        """The findings whose verdict is not the reported one, nor the second one that is as good, or that hold for too
        few trials."""
        absent, either, least = self.absent or {}, self.either or {}, self.least or {}
        return [
            f
            for f in findings
            if f.verdict not in (absent.get(f.what, SHOWS), either.get(f.what))
            or (f.what in least and not f.found >= least[f.what])
        ]


def agrees(
    what: str, sample: ArrayLike, expected: float, *, limit: float = 3.0, resolution: float = 0.25, **point: Any
) -> Finding:
    """The mean of independent values is within `limit` standard errors of what is expected.

    An interval wider than `resolution` of the expected value on either side does not show it. Values that do not vary
    are no sample: they show it only where they are exact.
    """
    values = np.asarray(sample, dtype=np.float64)
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    margin = error * float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))
    verdict = DOES_NOT if not abs(mean - expected) <= limit * error else SHOWS
    if verdict == SHOWS and margin > resolution * abs(expected):
        verdict = UNDECIDED
    return Finding(
        what=what,
        expected=f"{expected:.4g}",
        found=mean,
        low=mean - margin,
        high=mean + margin,
        n=len(values),
        verdict=verdict,
        curve=expected,
        **point,
    )


def below(what: str, found: float, low: float, high: float, bound: float, *, n: int, **point: Any) -> Finding:
    """The whole interval is below the bound."""
    verdict = DOES_NOT if not (low < bound and varies(low, high)) else SHOWS if high < bound else UNDECIDED
    return Finding(what=what, expected=f"< {bound:.4g}", found=found, low=low, high=high, n=n, verdict=verdict, **point)


def above(what: str, found: float, low: float, high: float, bound: float, *, n: int, **point: Any) -> Finding:
    """The whole interval is above the bound."""
    verdict = DOES_NOT if not (high > bound and varies(low, high)) else SHOWS if low > bound else UNDECIDED
    return Finding(what=what, expected=f"> {bound:.4g}", found=found, low=low, high=high, n=n, verdict=verdict, **point)


def within(what: str, found: float, low: float, high: float, first: float, last: float, *, n: int) -> Finding:
    """The whole interval is between two bounds."""
    meet = first <= high and low <= last and varies(low, high)
    verdict = DOES_NOT if not meet else SHOWS if first <= low and high <= last else UNDECIDED
    expected = f"{first:.4g} to {last:.4g}"
    return Finding(what=what, expected=expected, found=found, low=low, high=high, n=n, verdict=verdict)


def varies(low: float, high: float) -> bool:
    """Whether an interval has a width; without one, the replicates are no sample, which shows nothing."""
    return not math.isclose(low, high, rel_tol=1e-9)


def every(what: str, holds: ArrayLike) -> Finding:
    """Something holds for every trial; the interval of the share is Wilson's."""
    trials = np.asarray(holds, dtype=np.bool_)
    n, count = len(trials), int(trials.sum())
    interval = stats.binomtest(count, n).proportion_ci(LEVEL, method="wilson")
    return Finding(
        what=what,
        expected="1",
        found=count / n,
        low=float(interval.low),
        high=float(interval.high),
        n=n,
        verdict=SHOWS if count == n else DOES_NOT,
    )


def mean_interval(sample: ArrayLike) -> tuple[float, float, float]:
    """Mean and its t interval."""
    values = np.asarray(sample, dtype=np.float64)
    mean = float(values.mean())
    margin = float(stats.sem(values) * stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))
    return mean, mean - margin, mean + margin
