"""The five families with seeds: each seed has a smooth boundary of its own, and exact points on any boundary.

A seed moves every latent distance of a problem by a smooth Gaussian field with lengthscale `LENGTHSCALE` box widths and
the standard deviation `spread`. The field's mean is 0: the majority over all seeds is the problem's own. A trial's
noise is that of the problem, independent of its seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.benchmarks.boundary.peers import lattice
from tests.benchmarks.boundary.problems import Floats, Labels, Problem

LENGTHSCALE = 0.5
_FEATURES = 32
_HALVINGS = 30
_SIDE = {2: 160, 3: 40}


@dataclass(frozen=True, eq=False)
class SeededProblem:
    """One instance of a family whose trials share the effect of their seed along the axes."""

    problem: Problem
    seeds: int
    """R: trials have the seeds 0 to R - 1; larger ones are other seeds."""

    @property
    def spread(self) -> float:
        """Standard deviation over seeds of the boundary's place, in box widths."""
        return 0.01 if self.problem.name == "C" else 0.02

    def shift(self, x: Floats, seed: int) -> Floats:
        """(n, 3) what a seed adds to each latent distance at (n, d) positions."""
        random = np.random.default_rng([self.problem.seed, ord(self.problem.name), seed])
        out = np.zeros((len(x), 3))
        for field in range(3 if self.problem.name == "B" else 1):
            frequency = random.standard_normal((self.problem.dimensions, _FEATURES)) / LENGTHSCALE
            waves = np.cos(x @ frequency + random.uniform(0, 2 * np.pi, _FEATURES))
            out[:, field] = self.spread * np.sqrt(2 / _FEATURES) * waves.sum(axis=1)
        return out

    def of_seed(self, x: Floats, seed: int) -> Labels:
        """(n,) the label that a seed shows, but for a trial's own noise."""
        return self.problem.majority(x, self.shift(x, seed))

    def of_seeds(self, x: Floats) -> Labels:
        """(n,) the label that most of the R seeds show; of labels that tie, the first."""
        shown = np.stack([self.of_seed(x, seed) for seed in range(self.seeds)])
        return np.asarray([(shown == k).sum(axis=0) for k in range(self.problem.classes)]).argmax(axis=0)

    def observe(self, x: Floats, seed: Labels) -> tuple[Labels, Floats]:
        """Trials at (n, d) positions with (n,) seeds; see `Problem.observe`."""
        shift = np.empty((len(x), 3))
        for s in np.unique(seed):
            shift[seed == s] = self.shift(x[seed == s], int(s))
        return self.problem.observe(x, shift)


def exact_points(label: Callable[[Floats], Labels], problem: Problem, count: int = 300) -> Floats:
    """Up to `count` points on the boundary between any two labels, exact to 1e-9 of the box.

    Neighbouring points of a grid that differ are bisected between them.
    """
    d = problem.dimensions
    g = _SIDE[d]
    cells = lattice(g, d)
    grid = label(cells).reshape((g,) * d)
    cells = cells.reshape((g,) * d + (d,))
    low, high = [], []
    for axis in range(d):
        first = np.take(cells, range(g - 1), axis=axis)
        second = np.take(cells, range(1, g), axis=axis)
        differ = np.diff(grid, axis=axis) != 0
        low.append(first[differ])
        high.append(second[differ])
    a, b = np.concatenate(low), np.concatenate(high)
    if not len(a):
        return np.empty((0, d))
    chosen = np.random.default_rng(0).choice(len(a), min(count, len(a)), replace=False)
    a, b = a[chosen], b[chosen]
    at_a = label(a)
    for _ in range(_HALVINGS):
        middle = (a + b) / 2
        same = label(middle) == at_a
        a[same], b[~same] = middle[same], middle[~same]
    return np.asarray((a + b) / 2)
