"""The result of a check against mathematics: measured and expected values, and the permitted deviation."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Result:
    """One comparison."""

    what: str
    measured: float
    expected: float
    deviation: float
    """How far apart they are, in `unit`; not below 0. NaN fails."""
    limit: float
    """The largest deviation that passes."""
    unit: str
    """"standard errors", "spreads" (of one more draw), "steps", "relative" (of the expected value), "absolute";
    "below" or "above" where it is a bound."""

    @property
    def passed(self) -> bool:
        return self.deviation <= self.limit


@dataclass(frozen=True, kw_only=True)
class Check:
    """A formula and what it is held against. Running it yields at least one result."""

    name: str
    source: str
    """Where the formula, or the expected number, comes from."""
    run: Callable[[], Iterable[Result]]
    slow: bool = False
    """Takes more than about three seconds of a core."""


def results_of(check: Check) -> Sequence[Result]:
    """All results of a check; one that raises, or that compares nothing, has failed."""
    try:
        found = list(check.run())
        why = "" if found else "compared nothing"
    except Exception as error:
        found, why = [], "".join(traceback.format_exception_only(error)).strip()
    if found:
        return found
    return [Result(what=why, measured=math.nan, expected=math.nan, deviation=math.nan, limit=0.0, unit="absolute")]


def passed(check: Check) -> bool:
    """Whether every result is within its limit."""
    return all(result.passed for result in results_of(check))


def mean_against(what: str, values: Sequence[float] | np.ndarray, expected: float, *, limit: float = 3.0) -> Result:
    """The mean of independent measurements against the expected mean, in standard errors of that mean."""
    sample = np.asarray(values, dtype=np.float64)
    mean, error = float(sample.mean()), float(sample.std(ddof=1)) / math.sqrt(len(sample))
    deviation = abs(mean - expected) / error if error else math.inf * abs(mean - expected)
    return Result(what=what, measured=mean, expected=expected, deviation=deviation, limit=limit, unit="standard errors")


def relative(what: str, measured: float, expected: float, *, limit: float) -> Result:
    """A number against another, as a share of the expected one."""
    deviation = abs(measured / expected - 1)
    return Result(what=what, measured=measured, expected=expected, deviation=deviation, limit=limit, unit="relative")


def absolute(what: str, measured: float, expected: float, *, limit: float = 0.0, unit: str = "absolute") -> Result:
    """A number against another, by their difference."""
    deviation = abs(measured - expected)
    return Result(what=what, measured=measured, expected=expected, deviation=deviation, limit=limit, unit=unit)


def at_least(what: str, measured: float, expected: float) -> Result:
    """A number that must not be below another; the deviation is by how much it is."""
    deviation = max(expected - measured, 0.0)
    return Result(what=what, measured=measured, expected=expected, deviation=deviation, limit=0.0, unit="below")


def at_most(what: str, measured: float, expected: float) -> Result:
    """A number that must not be above another; the deviation is by how much it is."""
    deviation = max(measured - expected, 0.0)
    return Result(what=what, measured=measured, expected=expected, deviation=deviation, limit=0.0, unit="above")
