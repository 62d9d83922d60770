"""One search on one problem, and the grid; every map is drawn by the same classifier."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from orchestrator.surface.classifier import GpClassifier, fit_classifier
from tests.benchmarks.boundary.peers import SEARCHES, START, lattice
from tests.benchmarks.boundary.problems import Problem

BATCH = 32
CHECKPOINTS = (64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
SIDES = {
    2: (12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56),
    3: (5, 6, 7, 8, 9, 10, 11, 12, 13),
}
"""Points an axis of the grids that are tried."""


@dataclass(kw_only=True)
class Run:
    """What one search reached."""

    search: str
    problem: str
    seed: int
    error: dict[int, float] = field(default_factory=dict)
    """Share of the area that the map gets wrong, by trials spent."""
    displacement: dict[int, float] = field(default_factory=dict)
    """Of the boundary, in box widths."""
    fit_s: float = 0.0
    """Processor seconds in the classifier, all fits."""
    ask_s: float = 0.0
    """Processor seconds in choosing trials, all batches."""

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def draw(run: Run, problem: Problem, belief: GpClassifier, trials: int) -> None:
    labels = problem.drawn(belief.label)
    run.error[trials] = problem.error(labels)
    if trials in (256, 512):
        run.displacement[trials] = problem.displacement(labels)


def search(name: str, letter: str, seed: int, budget: int) -> Run:
    """The searches that are adaptive or sequences, to `budget` trials."""
    problem = Problem(letter, seed)
    method = SEARCHES[name](problem, seed)
    run = Run(search=name, problem=letter, seed=seed)
    belief: GpClassifier | None = None
    x = method.begin()
    while True:
        method.tell(x, *problem.observe(x))
        spent = len(method.x)
        if method.needs_belief or spent in CHECKPOINTS:
            began = time.process_time()
            belief = fit_classifier(method.x, method.label, classes=problem.classes, previous=belief)
            run.fit_s += time.process_time() - began
        if spent in CHECKPOINTS:
            assert belief is not None
            draw(run, problem, belief, spent)
        if spent >= budget:
            return run
        began = time.process_time()
        x = method.ask(min(BATCH, budget - spent), belief)
        run.ask_s += time.process_time() - began


def grid(letter: str, seed: int, most: int) -> Run:
    """Full grids, each anew, until one reaches 1% or has `most` trials."""
    run = Run(search="grid", problem=letter, seed=seed)
    d = Problem(letter, seed).dimensions
    for side in SIDES[d]:
        if START <= side**d <= most:
            problem = Problem(letter, seed)
            x = lattice(side, d)
            belief = fit_classifier(x, problem.observe(x)[0], classes=problem.classes)
            draw(run, problem, belief, side**d)
            if run.error[side**d] < 0.01:
                break
    return run


def trials_to(error: dict[int, float], level: float) -> float:
    """Trials at which a map error is reached for good (its logarithm is straight between checkpoints), or infinity."""
    counts = sorted(error)
    above = [n for n in counts if error[n] > level]
    if not above:
        return float(counts[0])
    after = [n for n in counts if n > above[-1]]
    if not after:
        return float("inf")
    a, b = above[-1], after[0]
    log_a, log_b = np.log(error[a]), np.log(max(error[b], 1e-6))
    return float(a + (b - a) * (log_a - np.log(level)) / (log_a - log_b))


def one(job: tuple[str, str, int, int]) -> dict[str, Any]:
    """(search, problem, seed, budget) -> a run as plain data; for a pool of processes."""
    name, letter, seed, budget = job
    return (grid(letter, seed, budget) if name == "grid" else search(name, letter, seed, budget)).plain()
