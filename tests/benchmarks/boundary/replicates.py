"""`python -m tests.benchmarks.boundary.replicates`: what replicates save on a grid whose labels are noisy.

Problems E and A on a grid of 20 x 20 settings, 380 trials, with up to three trials a setting and with one: geometric
mean of the map error over six instances. As phases, and as a level of the order parameter.
"""

# ruff: noqa: E402 - threads are limited before numpy is imported

from __future__ import annotations

import os

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
from scipy.stats import qmc

from orchestrator.surface.base import Evidence, Points
from orchestrator.surface.level import LevelSurrogate
from orchestrator.surface.phase import PhaseSurrogate
from tests.benchmarks.boundary.peers import START
from tests.benchmarks.boundary.problems import Problem
from tests.benchmarks.boundary.runs import BATCH

SIDE, TRIALS, INSTANCES = 20, 380, 6


def to_cells(x: Points) -> Points:
    return np.asarray((np.floor(np.clip(x, 0, 1 - 1e-9) * SIDE) + 0.5) / SIDE)


def error(letter: str, seed: int, *, replicates: int, level: bool) -> float:
    """The share of the map that is wrong after TRIALS trials."""
    problem, rng = Problem(letter, seed), np.random.default_rng(seed)
    target = (
        LevelSurrogate(level=0.5, replicates=replicates)
        if level
        else PhaseSurrogate(classes=problem.classes, replicates=replicates)
    )
    x = np.unique(to_cells(qmc.Sobol(2, rng=np.random.default_rng(300 + seed)).random(START)), axis=0)
    label, order = problem.observe(x)
    value, surface = order[:, 0], None
    while True:
        told = Evidence(x=x, label=label, value=value, censored=np.zeros(len(x), dtype=np.bool_))
        surface = target.fit(told, previous=surface)  # type: ignore[arg-type]
        if len(x) >= TRIALS:
            return problem.error(problem.drawn(surface.label))
        more = target.suggest(
            surface, told, pending=np.empty((0, 2)), count=min(BATCH, TRIALS - len(x)), snap=to_cells, rng=rng
        )  # type: ignore[arg-type]
        new_label, new_order = problem.observe(more)
        x, label = np.concatenate([x, more]), np.concatenate([label, new_label])
        value = np.concatenate([value, new_order[:, 0]])


if __name__ == "__main__":
    for letter in "EA":
        for level in (False, True):
            for replicates in (1, 3):
                logs = [np.log(error(letter, s, replicates=replicates, level=level)) for s in range(INSTANCES)]
                what = "level" if level else "phase"
                print(f"{letter}, {what}, {replicates} replicates: {100 * np.exp(np.mean(logs)):.2f}%", flush=True)
