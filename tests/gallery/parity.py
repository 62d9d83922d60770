"""Row 13: sparse parity; a jump of the accuracy, a power law of its step, and a measure that moves before it; grokking
on finite data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.gallery.row import (
    DOES_NOT,
    LEVEL,
    UNDECIDED,
    Finding,
    Picture,
    Point,
    Row,
    above,
    below,
    every,
    mean_interval,
    within,
)

STEP, RESAMPLES = "generalisation_step", 400
LEFT, MOVED = 0.55, 1.05
"""The accuracy that has left chance (its standard error is 0.011), and the growth that is progress."""
LEARNED, LONG, NEAR_CHANCE = 0.98, 2.0, 0.6
"""On finite data: the accuracy that counts as learned, the ratio of steps that is long, and what is near chance."""
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
    yield from finite(results[1].curves(["train_accuracy", "test_accuracy"], axes=True))


def finite(curves: Any) -> Iterator[Finding]:
    """Training examples are memorised long before parity is found with weight decay; without, it is not found."""
    memorised, found, then, last = {}, {}, {}, {}
    for decay, group in curves.groupby("weight_decay"):
        table = group.pivot(index="replicate", columns="step")
        memorised[decay], found[decay] = (reached(table[name]) for name in ("train_accuracy", "test_accuracy"))
        then[decay] = [table.test_accuracy.loc[seed].get(step, math.nan) for seed, step in memorised[decay].items()]
        last[decay] = table.test_accuracy.iloc[:, -1]
        yield every(f"finite, decay {decay:g}: training accuracy 0.98", memorised[decay].notna())
    none, decay = sorted(last)
    yield every(f"finite, decay {decay:g}: test accuracy 0.98", found[decay].notna())
    chance = mean_interval(then[decay])
    yield below(f"finite, decay {decay:g}: test accuracy when memorised", *chance, NEAR_CHANCE, n=len(then[decay]))
    ratio = map(float, np.exp(mean_interval(np.log(delay(memorised[decay], found[decay])))))
    what = f"finite, decay {decay:g}: step of test / step of training accuracy 0.98"
    yield above(what, *ratio, LONG, n=len(found[decay]))
    yield below(
        f"finite, decay {none:g}: last test accuracy", *mean_interval(last[none]), NEAR_CHANCE, n=len(last[none])
    )


def accuracies(results: Sequence[Any]) -> Iterator[Point]:
    """On finite data: the mean accuracies of the reports, with and without weight decay."""
    curves = results[1].curves(["train_accuracy", "test_accuracy"], axes=True)
    for (decay, step), group in curves[curves.step > 0].groupby(["weight_decay", "step"]):
        for name, part in (("train_accuracy", "training"), ("test_accuracy", "test")):
            found, low, high = mean_interval(group[name])
            series = f"weight decay {decay:g}, {part}"
            yield Point(found=found, low=low, high=high, series=series, x=float(step))


def reached(accuracy: Any) -> Any:
    """Of each replicate, the first step at which the accuracy is at least 0.98; not a number: never."""
    high = accuracy >= LEARNED
    return high.idxmax(axis=1).where(high.any(axis=1))


def delay(memorised: Any, found: Any) -> Any:
    """How much later parity is found, as a ratio of steps."""
    return found / memorised


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
    source="Barak et al. 2022; Merrill et al. 2023",
    sweeps=("barak2022/sparse_parity_small.yaml", "merrill2023/finite_parity_small.yaml"),
    check=check,
    axes=("inputs", "step of accuracy 0.9"),
    pictures={"finite_parity": Picture(points=accuracies, axes=("step", "accuracy"), scale="linear")},
    absent={"k 4: exponent above that of k 3": UNDECIDED, LEAD: DOES_NOT},
    either={"k 4: exponent above that of k 3": DOES_NOT},
)
