"""Row 13: sparse parity; a jump of the accuracy, a power law of its step, and a measure that moves before it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.gallery.row import DOES_NOT, LEVEL, UNDECIDED, Finding, Row, above, below, every, mean_interval, within

STEP, RESAMPLES = "generalisation_step", 400
LEFT, MOVED = 0.55, 1.05
"""The accuracy that has left chance (its standard error is 0.011), and the growth that is progress."""
LEAD = "step of accuracy 0.55 / step of a share grown by 5%"


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """All trials learn; the exponent of the step in n for each degree; progress comes before accuracy."""
    trials = results[0].trials()
    curves = results[0].curves(["test_accuracy", "relevant_share"], axes=True)
    slopes: dict[int, tuple[float, float, float]] = {}
    for (degree, bits), group in trials.groupby(["degree", "bits"]):
        steps = map(float, np.exp(mean_interval(np.log(group[STEP]))))
        what, series = f"k {degree}, n {bits}: step, below n^k", f"k = {degree}"
        yield below(what, *steps, float(bits) ** int(degree), n=len(group), series=series, x=float(bits))
    for degree, group in trials.groupby("degree"):
        yield every(f"k {degree}: test accuracy 0.9 is reached", group[STEP].notna())
        steps = np.log(group.pivot(index="replicate", columns="bits", values=STEP))
        slopes[int(degree)] = found, low, high = slope_interval(np.log(np.asarray(steps.columns, dtype=float)), steps)
        yield within(f"k {degree}: exponent of the step in n", found, low, high, 0.5, float(degree), n=len(steps))
    for fewer, more in ((2, 3), (3, 4)):
        yield above(f"k {more}: exponent above that of k {fewer}", *slopes[more], slopes[fewer][2], n=len(steps))
    by_trial = [curve for _, curve in curves.groupby("trial_id", observed=True)]
    grown = np.exp(mean_interval([growth(curve) for curve in by_trial]))
    what = "relevant share at half the step of accuracy 0.55 / at first"
    yield above(what, *map(float, grown), 1.0, n=len(by_trial))
    ratios = [lead(curve) for curve in by_trial]
    found, low, high = np.median(ratios), *np.quantile(bootstrapped(ratios), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    yield above(LEAD, float(found), float(low), float(high), 1.0, n=len(ratios))


def slope_interval(place: Any, steps: Any) -> tuple[float, float, float]:
    """Of log step in log n over whole replicates, with its bootstrap interval."""
    random = np.random.default_rng(0)
    rows = [random.integers(len(steps), size=len(steps)) for _ in range(RESAMPLES)]
    drawn = [np.polyfit(place, steps.iloc[row].mean(), 1)[0] for row in rows]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(np.polyfit(place, steps.mean(), 1)[0]), float(low), float(high)


def growth(curve: Any) -> float:
    """Log of how much the relevant share has grown at half the step at which the accuracy leaves chance."""
    share, step = curve.relevant_share.to_numpy(), curve.step.to_numpy()
    left = step[curve.test_accuracy.to_numpy() >= LEFT]
    early = share[step <= left[0] / 2] if len(left) else share[:0]
    return float(np.log(early[-1] / share[0])) if len(early) else math.nan


def lead(curve: Any) -> float:
    """The step at which the accuracy leaves chance, over that at which the relevant weights have grown."""
    share, accuracy = curve.relevant_share.to_numpy(), curve.test_accuracy.to_numpy()
    moved, left = np.flatnonzero(share >= MOVED * share[0]), np.flatnonzero(accuracy >= LEFT)
    step = curve.step.to_numpy().astype(float)
    return float(step[left[0]] / step[moved[0]]) if len(moved) and len(left) else 0.0


def bootstrapped(values: Sequence[float]) -> list[float]:
    random = np.random.default_rng(0)
    return [float(np.median(random.choice(values, len(values)))) for _ in range(RESAMPLES)]


ROW = Row(
    number=13,
    name="sparse parity",
    source="Barak et al. 2022",
    sweeps=("barak2022/sparse_parity_small.yaml",),
    check=check,
    axes=("inputs", "step of accuracy 0.9"),
    absent={"k 4: exponent above that of k 3": UNDECIDED, LEAD: DOES_NOT},
)
