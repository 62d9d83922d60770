"""Row 7: subtasks that are learned one after another, each in a step, add up to a power law of the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import stats

from tests.gallery.row import Finding, Row, above, agrees, below, every, mean_interval, within

LEVELS = (0.65, 0.9)
"""An accuracy above chance, and that of a subtask that is learned."""
FIRST, LAST = 2, 8
"""Subtasks whose steps are fitted: the first shares its time with finding features at all."""


def exponents(zipf: float) -> tuple[float, float]:
    """Of a subtask's step in its rank, and of the loss in steps, with frequencies j^-zipf, zipf = a + 1.

    A subtask needs a number of its own examples, so that rank j is learned at a step ~ j^(a + 1); the loss is that of
    the subtasks beyond, j^-a, and so steps^-(a / (a + 1)).

    Source: Michaud et al. 2023, section 2, with examples in one epoch.
    """
    return zipf, (zipf - 1) / zipf


def model_loss(steps: Any, first: float, zipf: float, tasks: int) -> Any:
    """Loss where subtask j is learned at once, at the step first j^zipf; log 2 before."""
    rank = np.arange(1, tasks + 1)
    share = rank**-zipf / (rank**-zipf).sum()
    return np.log(2) * (share * (np.asarray(steps)[:, None] < first * rank**zipf)).sum(1)


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """The order of the subtasks, how sudden each is, and the two exponents."""
    tasks = int(results[0].trials().tasks.iloc[0])
    rank = np.arange(1, LAST + 1)
    names = [f"accuracy_{j:02d}" for j in rank]
    curves = results[0].curves([*names, "test_loss"], axes=True)
    for zipf, group in curves.groupby("zipf"):
        seeds = [curve for _, curve in group.groupby("replicate")]
        left, learned = (np.array([[reached(c, name, level) for name in names] for c in seeds]) for level in LEVELS)
        step_exponent, loss_exponent = exponents(float(zipf))
        start, count = f"frequencies j^-{zipf:g}", len(seeds)
        yield every(f"{start}: subtasks 1 to {LAST} are learned", np.isfinite(learned).ravel())
        order = [float(stats.spearmanr(rank, row).statistic) for row in learned]
        yield above(f"{start}: rank correlation of frequency and order", *mean_interval(order), 0.9, n=count)
        sudden = map(float, np.exp(mean_interval(np.log(learned / left).mean(1))))
        yield below(f"{start}: step of accuracy 0.9 / step of 0.65", *sudden, 2.0, n=count)
        first = float(np.exp(np.log(learned / rank**step_exponent).mean()))
        for j, steps in zip(rank, learned.T, strict=True):
            expected = first * float(j) ** step_exponent
            yield agrees(f"{start}: step of subtask {j}", steps, expected, series=start, x=float(j))
        slopes = [line(rank[FIRST - 1 :], row[FIRST - 1 :]) for row in learned]
        yield agrees(f"{start}: exponent of the step in the rank", slopes, step_exponent)
        low, high = np.exp(np.log(learned[:, [FIRST - 1, LAST - 1]]).mean(0))
        chosen = [curve[curve.step.between(low, high)] for curve in seeds]
        exact = -line(chosen[0].step, model_loss(chosen[0].step, first, float(zipf), tasks))
        falls = [-line(curve.step, curve.test_loss) for curve in chosen]
        yield agrees(f"{start}: exponent of the loss in steps, with {tasks} subtasks", falls, exact)
        limit = (loss_exponent, 1.5 * loss_exponent)
        yield within(f"{start}: near {loss_exponent:.3g} of infinitely many", *mean_interval(falls), *limit, n=count)


def reached(curve: Any, name: str, level: float) -> float:
    """The first step at which the accuracy is at least this; infinite if there is none."""
    steps = curve.step.to_numpy()[curve[name].to_numpy() >= level]
    return float(steps[0]) if len(steps) else np.inf


def line(x: Any, y: Any) -> float:
    """Slope of log y in log x; not a number where something was never reached."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if np.isfinite(y).all() else np.nan


ROW = Row(
    number=7,
    name="stacked steps",
    source="Michaud et al. 2023",
    sweeps=("michaud2023/quanta_small.yaml",),
    check=check,
    axes=("rank of the subtask", "step of accuracy 0.9"),
)
