"""`python -m tests.benchmarks.boundary.suggestion_time`: processor time of a suggestion to 1,000 trials, and at 5,000.

Fit, uncertain area and choice of batches of 32, one thread, on problems A (two classes), B (four) and D (3-D).
"""

# ruff: noqa: E402 - threads are limited before numpy is imported

from __future__ import annotations

import os

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import time

import numpy as np
from scipy.stats import qmc

from orchestrator.surface.base import Evidence, Points
from orchestrator.surface.classifier import GpClassifier
from orchestrator.surface.phase import PhaseSurrogate
from tests.benchmarks.boundary.peers import START
from tests.benchmarks.boundary.problems import Labels, Problem
from tests.benchmarks.boundary.runs import BATCH


def batch(
    target: PhaseSurrogate, x: Points, label: Labels, before: GpClassifier | None
) -> tuple[GpClassifier, Points, float]:
    """The belief after these trials, the next batch, and what both took, in seconds."""
    told = Evidence(x=x, label=label, value=np.full(len(x), np.nan), censored=np.zeros(len(x), dtype=np.bool_))
    began = time.process_time()
    belief = target.fit(told, previous=before)
    belief.uncertain_area()
    more = target.suggest(
        belief,
        told,
        pending=np.empty((0, x.shape[1])),
        count=BATCH,
        snap=lambda at: at,
        rng=np.random.default_rng(len(x)),
    )
    return belief, more, time.process_time() - began


def search(letter: str, trials: int) -> list[float]:
    """Seconds of every batch of a search."""
    problem, belief, took = Problem(letter, 0), None, []
    target = PhaseSurrogate(classes=problem.classes)
    x = np.asarray(qmc.Sobol(problem.dimensions, rng=np.random.default_rng(0)).random(START))
    label = problem.observe(x)[0]
    while len(x) < trials:
        belief, more, seconds = batch(target, x, label, belief)
        took.append(seconds)
        x, label = np.concatenate([x, more]), np.concatenate([label, problem.observe(more)[0]])
    return took


def one_batch(letter: str, trials: int) -> float:
    """Seconds of a batch after so many Sobol points, of which all but the last 32 were known to a belief before."""
    problem = Problem(letter, 0)
    target = PhaseSurrogate(classes=problem.classes)
    x = np.asarray(qmc.Sobol(problem.dimensions, rng=np.random.default_rng(0)).random(8192))[:trials]
    label = problem.observe(x)[0]
    before, _, _ = batch(target, x[:-BATCH], label[:-BATCH], None)
    return batch(target, x, label, before)[2]


if __name__ == "__main__":
    for letter in "ABD":
        took = np.array(search(letter, 1024)) * 1e3 / BATCH
        last, mean = took[-10:].mean(), took.mean()
        print(f"{letter}: {last:.1f} ms a suggestion before 1,000 trials, {mean:.1f} in all", flush=True)
    for letter in "AB":
        print(f"{letter}: {one_batch(letter, 5000):.2f} s a batch at 5,000 trials", flush=True)
