"""Grokking: the exact map of ridge regression, the laws of time, and what needs no training."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from jobs.grokking import modular
from jobs.job import Censored, Curves, Member
from jobs.ridge.designs import make_problems
from jobs.ridge.job import Ridge
from jobs.ridge.params import RidgeParams, RidgeThresholds
from jobs.theory import parallelogram, quadratic_weights, ridge_grokking, weight_decay
from tests.packing import curves_of
from tests.science.check import Check, Result, absolute, relative

JOB = Ridge()
MAP: dict[str, Any] = {
    "sample_count": 50,
    "inputs": 400,
    "teacher": "row_space",
    "solver": "gradient_descent",
    "learning_rate": 0.05,
    "train_level": 1e-3,
    "test_level": 0.2,
    "stop_at_levels": True,
    "steps": 10_000,
    "curve_points": 10,
}
WEIGHT_DECAYS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 10.0)
INIT_SCALES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
FOUR_PHASES = ("comprehension", "grokking", "memorization", "confusion")


@functools.cache
def trained(settings: tuple[RidgeParams, ...], seed: int) -> dict[int, Curves]:
    """The curves of every setting on one data set, trained as one pack; once in a process."""
    return curves_of(JOB, [Member(params=params, seed=seed) for params in settings])


def ridge_map() -> Iterator[Result]:
    """Every crossing step of a real gradient-descent loop against the closed form's, on the trial's own data."""
    settings = [
        RidgeParams(**MAP, weight_decay=decay, init_scale=scale) for decay in WEIGHT_DECAYS for scale in INIT_SCALES
    ]
    curves = trained(tuple(settings), 1)
    one = make_problems(settings[:1], [1], "cpu")
    limits = RidgeThresholds()
    seen: dict[str, int] = {}
    worst = {"train": 0.0, "test": 0.0}
    disagree = phases_differ = 0
    for position, params in enumerate(settings):
        observed = JOB.observe(params, curves[position], limits)
        label = JOB.phase(params, observed, limits)
        seen[label] = seen.get(label, 0) + 1
        modes = ridge_grokking.modes_of(
            one.x_SNP[0].numpy(),
            teacher=one.population.target_SP[0].numpy(),
            start=one.start_SP[0].numpy() * params.init_scale,
        )
        exact = ridge_grokking.crossing_steps(
            modes,
            learning_rate=params.learning_rate,
            weight_decay=params.weight_decay,
            train_level=params.train_level,
            test_level=params.test_level,
            horizon=params.steps,
        )
        phases_differ += ridge_grokking.phase(exact, gap=limits.grokking_gap) != label
        for which, expected in (("train", exact.train), ("test", exact.test)):
            measured = observed[f"{which}_level_step"]
            if isinstance(measured, Censored) or expected is None:
                disagree += isinstance(measured, Censored) != (expected is None)
            else:
                worst[which] = max(worst[which], abs(measured - expected))
    count = len(settings)
    for which, difference in worst.items():
        yield absolute(f"largest difference of {count} {which} crossing steps", difference, 0, limit=1, unit="steps")
    yield absolute("crossings that one has and the other has not", disagree, 0)
    yield absolute("trials whose phase differs", phases_differ, 0)
    yield absolute("of Liu's four phases, seen", len(set(FOUR_PHASES) & set(seen)), 4)


def ridge_time() -> Iterator[Result]:
    """The law of time over a decade and a half of weight decay, from a real loop."""
    decays = np.geomspace(2e-3, 2e-3 * 10**1.5, 6)
    settings = [RidgeParams(**{**MAP, "steps": 30_000}, weight_decay=float(decay), init_scale=3.0) for decay in decays]
    curves = trained(tuple(settings), 2)
    steps = np.array([curves[k].values["test_level_step"][-1] for k in range(len(settings))])
    one = make_problems(settings[:1], [2], "cpu")
    modes = ridge_grokking.modes_of(
        one.x_SNP[0].numpy(), teacher=one.population.target_SP[0].numpy(), start=3.0 * one.start_SP[0].numpy()
    )
    expected = ridge_grokking.generalisation_steps(
        modes.null_start / modes.signal, test_level=0.2, learning_rate=0.05, weight_decay=decays
    )
    for decay, measured, law in zip(decays, steps, expected, strict=True):
        yield relative(f"steps to generalise at lam = {decay:.3g}", float(measured), float(law), limit=0.01)
    omnigrok = weight_decay.generalisation_time(
        np.sqrt(modes.null_start), np.sqrt(0.2 * modes.signal), weight_decay=decays, learning_rate=0.05
    )
    farthest = int(np.abs(steps / omnigrok - 1).argmax())
    yield relative(
        "Omnigrok's ln(w0 / wc) / (lr wd), the farthest of six",
        float(steps[farthest]),
        float(omnigrok[farthest]),
        limit=0.01,
    )
    slope, _ = weight_decay.decay_exponent(decays, steps)
    yield absolute("exponent of the weight decay", slope, -1.0, limit=0.01)


def liu() -> Iterator[Result]:
    draws = 20_000
    for pairs, expected in ((18, 0.03), (21, 0.29), (24, 0.71), (27, 0.91)):
        share, error = parallelogram.unique_probability(10, pairs, draws=draws)
        # The expected numbers have two digits and were themselves estimated, from some thousand draws.
        other = np.sqrt(expected * (1 - expected) / 1000)
        limit = 0.005 + 3 * float(np.hypot(error, other))
        yield absolute(f"P(unique), {pairs} of 55 pairs (r = {pairs / 55:.3f})", share, expected, limit=limit)


def gromov() -> Iterator[Result]:
    for width, seed in ((192, 0), (192, 1), (256, 0), (512, 0)):
        accuracy = quadratic_weights.quadratic_accuracy(*quadratic_weights.gromov_weights(97, width, seed=seed))
        yield absolute(f"accuracy, p = 97, N = {width}, phases {seed}", accuracy, 1.0, limit=0.0005)


def modular_tasks() -> Iterator[Result]:
    """What each operation is, said in another way than the job computes it."""
    p = 97
    for name in ("add", "subtract", "multiply", "divide"):
        x, y, z = (np.asarray(part) for part in modular.operation_pairs(name, p))
        undone = {"add": (z - y) % p, "subtract": (z + y) % p, "divide": (z * y) % p}.get(name)
        if undone is None:  # a product is undone by the inverse, y^(p - 2) by Fermat
            inverse = np.array([pow(int(k), p - 2, p) for k in range(p)])
            x, z, y = x[y > 0], z[y > 0], y[y > 0]
            undone = z * inverse[y] % p
        yield absolute(f"{name}: pairs that the inverse operation does not bring back", float((undone != x).sum()), 0)
        yield absolute(f"{name}: pairs", len(x), p * (p - (name in ("divide", "multiply"))))


CHECKS = (
    Check(
        name="ridge grokking, every crossing step",
        source="gradient descent on a quadratic, given X",
        run=ridge_map,
        slow=True,
    ),
    Check(
        name="ridge grokking, the law of time",
        source="the same; Liu, Michaud, Tegmark 2022 (Omnigrok)",
        run=ridge_time,
        slow=True,
    ),
    Check(name="the rank criterion", source="Liu et al. 2022, section 3.2", run=liu),
    Check(name="analytic weights", source="Gromov 2023, equations 6, 7 and 12", run=gromov),
    Check(name="modular tasks", source="the definition of each operation", run=modular_tasks),
)
