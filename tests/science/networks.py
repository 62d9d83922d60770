"""Trained networks: the map of small quadratic perceptrons, Omnigrok's law, and which operation needs more data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from jobs.grokking.job import Grokking
from jobs.grokking.params import GrokkingParams, GrokkingThresholds
from jobs.job import Curves, Member
from jobs.theory import weight_decay
from tests.packing import curves_of
from tests.science.check import Check, Result, absolute, at_least, at_most

JOB = Grokking()
Cell = tuple[float, float]
"""Weight decay and data fraction."""

HORIZON = 3000
READ_EVERY = 10
PUBLISHED: Mapping[Cell, int | None] = {
    (decay, fraction): step
    for decay, row in {
        0.0: (None, None, None, 1990, 60, 40),
        1.0: (None, 710, 240, 70, 50, 40),
        5.0: (500, 110, 70, 50, 40, 40),
    }.items()
    for fraction, step in zip((0.3, 0.4, 0.5, 0.6, 0.7, 0.8), row, strict=True)
}
"""The step at which test accuracy is at 90%, of one seed, by an independent computation; None: not in 3,000 steps.

All are multiples of ten, so it was read every ten steps: v stands for a crossing in (v - 10, v].
"""
MAP: dict[str, Any] = {"modulus": 31, "width": 200, "learning_rate": 0.01, "stop_accuracy": 0.9, "curve_points": 200}


def map_params(cell: Cell, step: int | None) -> GrokkingParams:
    """One cell of the map. One that must generalise is followed to five times its step: no spread is cut off."""
    steps = HORIZON if step is None else 5 * step
    return GrokkingParams(**MAP, weight_decay=cell[0], data_fraction=cell[1], steps=steps)


def trained(settings: Sequence[GrokkingParams], seeds: int) -> list[list[Curves]]:
    """The curves of each seed of each setting, trained as one pack."""
    curves = curves_of(JOB, [Member(params=params, seed=seed) for params in settings for seed in range(seeds)])
    return [[curves[k * seeds + seed] for seed in range(seeds)] for k in range(len(settings))]


def reached(params: GrokkingParams, curves: Curves, name: str, level: float = 0.9) -> float | None:
    """A step that the job observes; None: never."""
    step = JOB.observe(params, curves, GrokkingThresholds(generalised_accuracy=level))[name]
    return step if isinstance(step, float) else None


def within_spread(what: str, logs: np.ndarray, low: float, high: float, *, limit: float) -> Result:
    """Whether one more draw of the logarithms could lie in (low, high]: its prediction interval reaches that far.

    The deviation is from the mean of `logs` to the nearer end, 0 between them, in standard deviations of one further
    draw about that mean, s sqrt(1 + 1/n).
    """
    mean, one = float(logs.mean()), float(logs.std(ddof=1)) * math.sqrt(1 + 1 / len(logs))
    apart = max(low - mean, mean - high, 0.0)
    deviation = apart / one if one else (math.inf if apart else 0.0)
    return Result(
        what=what, measured=math.exp(mean), expected=math.exp(high), deviation=deviation, limit=limit, unit="spreads"
    )


def small_map(published: Mapping[Cell, int | None] = PUBLISHED, *, seeds: int = 8) -> Iterator[Result]:
    """Every cell of the published map against the spread of our seeds.

    A number must lie in the prediction interval of one further seed, on logarithms (normal, so Student's t with
    seeds - 1 degrees of freedom), and so must the mean over the cells; the intervals' level is 95% for the whole table
    together (Bonferroni). A cell without a number must not be reached by half of the seeds or more.
    """
    settings = [map_params(cell, step) for cell, step in published.items()]
    curves = trained(settings, seeds)
    numbers = [step for step in published.values() if step is not None]
    limit = float(stats.t.ppf(1 - 0.05 / (2 * (len(numbers) + 1)), seeds - 1))
    all_logs, latest = [], 0.0
    for (cell, step), params, of_cell in zip(published.items(), settings, curves, strict=True):
        where = f"weight decay {cell[0]:g}, {cell[1]:.0%} of the table"
        got = [s for one in of_cell if (s := reached(params, one, "generalisation_step")) is not None]
        latest = max(latest, *(reached(params, one, "memorisation_step") or math.inf for one in of_cell))
        if step is None:
            yield at_most(f"seeds of {seeds} at 90% in {HORIZON} steps; {where}", len(got), (seeds - 1) // 2)
        elif len(got) < seeds:
            yield absolute(f"seeds of {seeds} at 90% in {5 * step} steps; {where}", len(got), seeds)
        else:
            all_logs.append(np.log(got))
            yield within_spread(
                f"step of 90% test accuracy; {where}",
                all_logs[-1],
                math.log(step - READ_EVERY),
                math.log(step),
                limit=limit,
            )
    if len(all_logs) == len(numbers):
        ends = [float(np.mean(np.log(np.array(numbers) - shift))) for shift in (READ_EVERY, 0)]
        yield within_spread(f"the same, mean of {len(numbers)} cells", np.mean(all_logs, axis=0), *ends, limit=limit)
    yield at_most("latest step of 90% train accuracy", latest, 20)


DIGITS: dict[str, Any] = {
    "operation": "digits",
    "data_fraction": 0.08,
    "model": "image_mlp",
    "layers": 2,
    "width": 48,
    "loss": "squared",
    "learning_rate": 0.003,
    "init_scale": 6.0,
    "curve_points": 160,
}
DECAYS = tuple(float(decay) for decay in np.geomspace(0.01, 0.32, 6))
LEVEL = 0.8
"""Test accuracy that counts as generalised. At 0.85 the curve is so flat that some seeds never get there."""


def digits_params(decay: float) -> GrokkingParams:
    """One weight decay, followed until learning rate x weight decay x steps is 3."""
    steps = round(3 / (DIGITS["learning_rate"] * decay))
    return GrokkingParams(**DIGITS, stop_accuracy=LEVEL, weight_decay=decay, steps=steps)


def omnigrok(decays: Sequence[float] = DECAYS, *, seeds: int = 3) -> Iterator[Result]:
    """The exponent of the time to generalise, fitted for each seed; its error is that of the mean over the seeds.

    And roughly the law's constant, ln(w0 / wc) with the norms at the start and at that time: no less, for the decay
    cannot be faster than the weight decay's own, and at most twice that, for the gradient holds some of it up.
    """
    settings = [digits_params(decay) for decay in decays]
    curves = trained(settings, seeds)
    found = [
        [reached(params, one, "generalisation_step", LEVEL) for one in of_one]
        for params, of_one in zip(settings, curves, strict=True)
    ]
    count, trials = sum(step is not None for row in found for step in row), len(decays) * seeds
    yield absolute(f"trials of {trials} that generalise", count, trials)
    if count < trials:
        return
    steps = np.array(found, dtype=np.float64)
    slopes = np.array([weight_decay.decay_exponent(np.array(decays), row)[0] for row in steps.T])
    error = float(slopes.std(ddof=1)) / math.sqrt(seeds)
    span = f"{decays[0]:g} to {decays[-1]:g}"
    yield absolute(
        f"exponent of the weight decay, {span}; {seeds} seeds, s.e. {error:.3f}",
        float(slopes.mean()),
        -1.0,
        limit=max(3 * error, 0.15),
    )
    ends = np.array([[one.values["weight_norm"][[0, -1]] for one in row] for row in curves])  # they stop at the level
    expected = weight_decay.generalisation_time(
        ends[..., 0], ends[..., 1], weight_decay=np.array(decays)[:, None], learning_rate=DIGITS["learning_rate"]
    )
    ratio = float(np.exp(np.log(steps / expected).mean()))
    yield at_least("steps over ln(w0 / wc) / (lr wd), geometric mean", ratio, 1.0)
    yield at_most("the same", ratio, 2.0)


TRANSFORMER: dict[str, Any] = {
    "model": "transformer",
    "modulus": 23,
    "width": 32,
    "layers": 1,
    "heads": 4,
    "loss": "cross_entropy",
    "learning_rate": 0.003,
    "warmup_steps": 10,
    "weight_decay": 1.0,
    "batch_size": 512,
    "batch_fraction": 0.5,
    "steps": 4000,
    "stop_accuracy": 0.95,
    "curve_points": 80,
}


def operations(less: str = "add", more: str = "divide", *, fraction: float = 0.65, seeds: int = 4) -> Iterator[Result]:
    """From one share of the table every seed of the one operation generalises better than any of the other.

    If the two were alike, four seeds of each would come out so with probability 1 / 70.
    """
    final: dict[str, list[float]] = {}
    for operation in {less: None, more: None}:
        params = GrokkingParams(**TRANSFORMER, operation=operation, data_fraction=fraction)
        final[operation] = [float(one.values["test_accuracy"][-1]) for one in trained([params], seeds)[0]]
    said = f"{fraction:.0%} of the table: test accuracy, lowest of {less} and highest of {more}; {seeds} seeds"
    yield at_least(said, min(final[less]), max(final[more]))


CHECKS = (
    Check(
        name="the map of small perceptrons",
        source="an independent computation after Gromov 2023",
        run=small_map,
        slow=True,
    ),
    Check(
        name="time to generalise by weight decay",
        source="Liu, Michaud, Tegmark 2022 (Omnigrok), section 2",
        run=omnigrok,
        slow=True,
    ),
    Check(name="addition and division", source="Power et al. 2022, arXiv 2201.02177", run=operations, slow=True),
)
