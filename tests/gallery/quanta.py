"""Row 7: subtasks that are learned one after another, each in a step, add up to a power law of the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from orchestrator.analysis import fits, laws
from tests.gallery.row import DOES_NOT, LEVEL, UNDECIDED, Finding, Row, above, below, every, mean_interval, within

TASKS, FREQUENT = 32, 8
LEFT, LEARNED = 0.65, 0.9
"""Accuracies of a subtask: above chance, and learned: where a calibrated loss has made half of its fall from log 2."""
STEPS = (200, 500, 1000, 2000, 5000, 10_000)


def frequencies(zipf: float) -> Any:
    """(TASKS,) of sum 1."""
    weight = np.arange(1.0, TASKS + 1) ** -zipf
    return weight / weight.sum()


def in_steps(zipf: float) -> float:
    """The exponent of the loss in steps with infinitely many subtasks of frequency j^-(a + 1): a / (a + 1).

    A subtask is learned at a step ~ 1 / frequency, and the loss is that of the subtasks beyond j, ~ j^-a.
    Source: Michaud et al. 2023, section 2, data scaling (single-epoch).
    """
    return (zipf - 1) / zipf


def stacked(steps: Any, learned: Any, zipf: float) -> Any:
    """The loss if subtask j went from log 2 to 0 at the step learned[j]; infinite: not yet."""
    return np.log(2) * (steps[:, None] < learned) @ frequencies(zipf)


def beyond(count: Any, zipf: float) -> Any:
    """The loss if the `count` most frequent subtasks were learned, and no other."""
    return np.log(2) * np.append(frequencies(zipf)[::-1].cumsum()[::-1], 0.0)[count]


def check(results: Sequence[Any]) -> Iterator[Finding]:
    """The order of the subtasks, how sudden each is, their steps, and the loss as the sum of them."""
    names = [f"accuracy_{j:02d}" for j in range(1, TASKS + 1)]
    curves = results[0].curves([*names, "test_loss", "test_accuracy"], axes=True)
    for zipf, group in curves.groupby("zipf"):
        seeds = [curve for _, curve in group.groupby("replicate")]
        left, learned = (
            np.array([[reached(seed, name, level) for name in names] for seed in seeds]) for level in (LEFT, LEARNED)
        )
        order = mean_interval([stats.spearmanr(np.arange(TASKS), row).statistic for row in learned])
        if not zipf:
            yield within("frequencies alike: rank correlation of number and step", *order, -0.35, 0.35, n=len(seeds))
            continue
        yield every(f"subtasks 1 to {FREQUENT} are learned", np.isfinite(learned[:, :FREQUENT]).all(1))
        yield above("rank correlation of rarity and step", *order, 0.8, n=len(seeds))
        never = np.full_like(learned, np.inf)
        rises = np.divide(learned, left, out=never, where=np.isfinite(learned))
        rise = np.log(np.median(rises[:, :FREQUENT], axis=1))
        whole = [np.log(reached(s, "test_accuracy", LEARNED) / reached(s, "test_accuracy", LEFT)) for s in seeds]
        yield below("step of accuracy 0.9 / step of 0.65", *np.exp(mean_interval(rise)), 2.0, n=len(seeds))
        yield below(
            "logarithm of this ratio / that of the mean accuracy", *mean_interval(rise / whole), 0.5, n=len(seeds)
        )
        yield within("exponent of the step in 1 / frequency", *exponent(seeds, learned, zipf), 0.75, 1.25, n=len(seeds))
        yield from of_the_loss(seeds, learned, zipf)


def of_the_loss(seeds: Sequence[Any], learned: Any, zipf: float) -> Iterator[Finding]:
    """Its course beside the sum of steps, and its exponents in steps and in the number of subtasks learned."""
    found: list[list[float]] = []
    stacks = []
    for seed, row in zip(seeds, learned, strict=True):
        steps, loss = seed.step.to_numpy(), seed.test_loss.to_numpy()
        stack, count = stacked(steps, row, zipf), (steps[:, None] >= row).sum(1)
        window = (steps >= STEPS[0]) & (steps <= STEPS[-1]) & (stack > 0)
        some = (count >= 1) & (count <= TASKS // 2)
        fall = -slope(steps[window], loss[window])
        by_count = slope(count[some], loss[some]) / slope(count[some], beyond(count, zipf)[some])
        found.append([fall, -fall / slope(steps[window], stack[window]), by_count])
        places = np.minimum(np.searchsorted(steps, STEPS), len(steps) - 1)  # a trial may have ended before
        stacks.append([loss[places], stack[places]])
    for step, (loss, stack) in zip(STEPS, np.moveaxis(np.array(stacks), 0, 2).transpose(1, 0, 2), strict=True):
        expected = float(stack.mean())
        course = within(f"loss at step {step}", *mean_interval(loss), 0.8 * expected, 1.25 * expected, n=len(loss))
        yield replace(course, series="test loss", x=float(step), curve=expected)
    fall, by_stack, by_count = np.array(found).T
    yield above("exponent of the loss in steps", *mean_interval(fall), in_steps(zipf), n=len(fall))
    yield within(
        "exponent of the loss in steps / that of the sum of steps", *mean_interval(by_stack), 0.9, 1.1, n=len(fall)
    )
    what = "exponent of the loss in subtasks learned / that of the frequencies beyond"
    yield within(what, *mean_interval(by_count), 0.8, 1.25, n=len(fall))


def reached(curve: Any, name: str, level: float) -> float:
    """The first step at which the accuracy is at least this; infinite: not within the steps of the trial."""
    steps = curve.step.to_numpy()[curve[name].to_numpy() >= level]
    return float(steps[0]) if len(steps) else np.inf


def exponent(seeds: Sequence[Any], learned: Any, zipf: float) -> tuple[float, float, float]:
    """Of the step in 1 / frequency over all subtasks, known between two reports or censored, resampled by seed."""
    before = [
        np.append(0, seed.step)[np.searchsorted(seed.step, row)] for seed, row in zip(seeds, learned, strict=True)
    ]
    rarity = np.tile(1 / frequencies(zipf), len(seeds))
    data = fits.observations(rarity, above=np.concatenate(before), to=learned.ravel())
    fit = fits.fit(laws.POWER, data, units=np.repeat(np.arange(len(seeds)), TASKS), level=LEVEL)
    b = fit.parameters["b"]
    return -b.value, -b.high, -b.low


def slope(x: Any, y: Any) -> float:
    """Of log y in log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


ROW = Row(
    number=7,
    name="stacked steps",
    source="Michaud et al. 2023",
    sweeps=("michaud2023/quanta_small.yaml",),
    check=check,
    axes=("step", "test loss"),
    absent={
        "step of accuracy 0.9 / step of 0.65": UNDECIDED,
        "exponent of the step in 1 / frequency": UNDECIDED,
        "loss at step 200": UNDECIDED,
        "exponent of the loss in steps / that of the sum of steps": DOES_NOT,
    },
    either={"exponent of the loss in steps / that of the sum of steps": UNDECIDED},
)
