"""Trains a recorded trial again and compares the curve with the recorded one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.job import Curves, Job, Member

TOLERANCE = 0.02
"""Tolerance in another environment, relative to the value plus 1.

Rounding depends on the shape of the pack, the processor and the library, and training amplifies it.
"""


@dataclass(frozen=True, kw_only=True)
class CurveComparison:
    """A curve compared with the recorded one."""

    same_steps: bool
    """Whether both have the same steps, with the same metrics at each."""
    exact: bool
    """Whether they are equal bit for bit."""
    deviation: dict[str, tuple[float, int]]
    """metric -> (largest absolute difference, its step); infinite if only one of the two is a number."""
    beyond: dict[str, int]
    """metric -> the first step beyond the tolerance, for metrics that have one."""

    @property
    def within(self) -> bool:
        """Whether every metric is within the tolerance at every step."""
        return self.same_steps and not self.beyond


def train_again(job: Job[Any], members: Sequence[Member[Any]], at: int, *, device: str) -> Curves:
    """Train the pack until its member `at` has finished, and return that member's curve.

    Raises:
        Any exception of the job; RuntimeError if the member's training failed.
    """
    steps: list[int] = []
    rows: list[dict[str, float]] = []
    training = job.train(members, device=device)
    for report in training:
        place = np.flatnonzero(report.members == at)
        if len(place):
            steps.append(report.step)
            rows.append({name: float(values[place[0]]) for name, values in report.values.items()})
        if at in report.failed:
            raise RuntimeError(f"the trial failed:\n{report.failed[at]}")
        if at in report.finished.tolist():
            break
    close = getattr(training, "close", None)
    if close is not None:
        close()
    names = dict.fromkeys(name for row in rows for name in row)
    return Curves(
        step=np.array(steps, dtype=np.int64),
        values={name: np.array([row.get(name, np.nan) for row in rows]) for name in names},
        present={name: np.array([name in row for row in rows], dtype=np.bool_) for name in names},
    )


def compare(recorded: Curves, again: Curves, *, tolerance: float = TOLERANCE) -> CurveComparison:
    """Compare two curves at the steps that both have."""
    same = np.array_equal(recorded.step, again.step) and set(recorded.values) == set(again.values)
    steps, one, other = np.intersect1d(recorded.step, again.step, return_indices=True)
    exact = same
    deviation: dict[str, tuple[float, int]] = {}
    beyond: dict[str, int] = {}
    for name in sorted(set(recorded.values) & set(again.values)):
        a, has_a = _rows(recorded, name, one)
        b, has_b = _rows(again, name, other)
        same = same and bool((has_a == has_b).all())
        both = has_a & has_b
        a, b, at = a[both], b[both], steps[both]
        exact = exact and same and bool(np.array_equal(a, b, equal_nan=True))
        if not len(a):
            continue
        apart = _apart(a, b)
        worst = int(np.argmax(apart))
        deviation[name] = (float(apart[worst]), int(at[worst]))
        with np.errstate(invalid="ignore", over="ignore"):
            far = apart > tolerance * (1 + np.where(np.isfinite(a), np.abs(a), 0.0))
        if far.any():
            beyond[name] = int(at[far][0])
    return CurveComparison(same_steps=same, exact=exact, deviation=deviation, beyond=beyond)


def _rows(curves: Curves, name: str, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The metric's values at these rows, and whether it was reported there."""
    present = None if curves.present is None else curves.present[name][rows]
    return curves.values[name][rows], np.ones(len(rows), np.bool_) if present is None else present


def _apart(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Absolute differences; equal infinities and two NaNs are 0 apart, a NaN and a number infinitely far."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(a - b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
