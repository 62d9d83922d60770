"""The searches that are compared: each proposes positions in the unit box and is told what the trials there showed.

All but the grid begin with the same scrambled Sobol points.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial import cKDTree
from scipy.stats import qmc

from orchestrator.surface.base import Evidence
from orchestrator.surface.classifier import GpClassifier
from orchestrator.surface.phase import PhaseSurrogate
from tests.benchmarks.boundary.problems import Floats, Labels, Problem

START = 64


class Search(ABC):
    """One search on one problem."""

    needs_belief = False
    """Whether `ask` uses the classifier's belief after every batch."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem, self.d = problem, problem.dimensions
        self.rng = np.random.default_rng(500 + seed)
        self.sobol = qmc.Sobol(self.d, rng=np.random.default_rng(300 + seed))
        self.x, self.label, self.order = np.empty((0, self.d)), np.empty(0, dtype=np.int64), np.empty(0)

    def begin(self) -> Floats:
        return np.asarray(self.sobol.random(START))

    @abstractmethod
    def ask(self, count: int, belief: GpClassifier | None) -> Floats:
        """(count, d) positions to try next."""

    def tell(self, x: Floats, label: Labels, order: Floats) -> None:
        self.x, self.label = np.concatenate([self.x, x]), np.concatenate([self.label, label])
        self.order = np.concatenate([self.order, self.problem.to_maximise(order)])


class Sobol(Search):
    def ask(self, count: int, belief: GpClassifier | None) -> Floats:
        return np.asarray(self.sobol.random(count))


class Phasefront(Search):
    """The search of this project."""

    needs_belief = True

    def ask(self, count: int, belief: GpClassifier | None) -> Floats:
        assert belief is not None
        nothing = np.full(len(self.x), np.nan)
        evidence = Evidence(x=self.x, label=self.label, value=nothing, censored=np.zeros(len(self.x), dtype=bool))
        return PhaseSurrogate(classes=self.problem.classes).suggest(
            belief, evidence, pending=np.empty((0, self.d)), count=count, snap=lambda x: x, rng=self.rng
        )


class Margin(Search):
    """The least difference between the two leading classes' predicted probabilities; each pick of a batch shrinks the
    latent variance as its label would, which moves the next one away."""

    needs_belief = True
    pool = 2**11

    def ask(self, count: int, belief: GpClassifier | None) -> Floats:
        assert belief is not None
        pool = qmc.Sobol(self.d, rng=self.rng).random(self.pool)
        phi = belief.features(pool)
        mean, variance = belief.latent_moments(pool, phi)
        halves = [posterior.half_covariance(phi) for posterior in belief.posteriors]
        past: list[list[tuple[float, Floats]]] = [[] for _ in halves]
        chosen: list[int] = []
        for _ in range(count):
            if mean.shape[1] == 1:
                gap, spread = np.abs(mean[:, 0]), np.sqrt(1 + variance[:, 0])
            else:
                first, second = np.argsort(-mean, axis=1)[:, :2].T
                each = np.arange(len(mean))
                gap = mean[each, first] - mean[each, second]
                spread = np.sqrt(2 + (np.sqrt(variance[each, first]) + np.sqrt(variance[each, second])) ** 2)
            score = gap / spread
            score[chosen] = np.inf
            pick = int(score.argmin())
            chosen.append(pick)
            for k, half in enumerate(halves):
                covariance = half.T @ half[:, pick]
                for gain, before in past[k]:
                    covariance -= gain * before[pick] * before
                gain = 1 / (1 + variance[pick, k])
                past[k].append((gain, covariance))
                variance[:, k] = np.maximum(variance[:, k] - gain * covariance**2, 1e-9)
        return np.asarray(pool[chosen])


class SwapAndDistance(Search):
    """P^4 dist^d: the odds that the leading two classes are swapped, and the distance to every trial; times 0.02 where
    the six nearest labels agree."""

    needs_belief = True

    def ask(self, count: int, belief: GpClassifier | None) -> Floats:
        assert belief is not None
        pool = qmc.Sobol(self.d, rng=self.rng).random(2**12)
        away, near = cKDTree(self.x).query(pool, k=6)
        first, second = np.sort(belief.belief(pool), axis=1)[:, :-3:-1].T
        worth = (second / (first + second)) ** 4
        worth[(self.label[near] == self.label[near[:, :1]]).all(axis=1)] *= 0.02
        distance, chosen = away[:, 0], []
        for _ in range(count):
            pick = int((worth * distance**self.d).argmax())
            chosen.append(pick)
            distance = np.minimum(distance, np.linalg.norm(pool - pool[pick], axis=1))
        return np.asarray(pool[chosen])


class Simplices(Search):
    """`adaptive.LearnerND`: the volume of a simplex, times 0.02 where its corners share one label."""

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem, seed)
        from adaptive import LearnerND

        def loss(simplex: Any, values: Any, scale: Any) -> float:
            edges = np.asarray(simplex)[1:] - np.asarray(simplex)[0]
            return abs(float(np.linalg.det(edges))) * (1.0 if len(set(values)) > 1 else 0.02)

        self.learner = LearnerND(lambda x: 0.0, [(0.0, 1.0)] * self.d, loss_per_simplex=loss)

    def ask(self, count: int, belief: GpClassifier | None) -> Floats:
        return np.array(self.learner.ask(count)[0], dtype=float).reshape(-1, self.d)

    def tell(self, x: Floats, label: Labels, order: Floats) -> None:
        super().tell(x, label, order)
        for position, shown in zip(x, label, strict=True):
            self.learner.tell(tuple(float(v) for v in position), float(shown))


class Tpe(Search):
    """Optuna's TPE, multivariate, on minus the distance of the order parameter from its threshold."""

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem, seed)
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=START, multivariate=True, constant_liar=True
            )
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        self.space = {f"x{i}": optuna.distributions.FloatDistribution(0, 1) for i in range(self.d)}
        self.open: list[Any] = []

    def ask(self, count: int, belief: GpClassifier | None) -> Floats:
        self.open = [self.study.ask(self.space) for _ in range(count)]
        return np.array([[trial.params[name] for name in self.space] for trial in self.open])

    def tell(self, x: Floats, label: Labels, order: Floats) -> None:
        import optuna

        super().tell(x, label, order)
        values = self.order[-len(x) :]
        if self.open:
            for trial, value in zip(self.open, values, strict=True):
                self.study.tell(trial, float(value))
        else:
            for position, value in zip(x, values, strict=True):
                params = {name: float(v) for name, v in zip(self.space, position, strict=True)}
                self.study.add_trial(
                    optuna.trial.create_trial(params=params, distributions=self.space, value=float(value))
                )


class Oracle(Search):
    """No search: it knows the truth, and spreads its trials evenly in a narrow band about the true boundary."""

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem, seed)
        boundary = cKDTree(problem.boundary())
        points = qmc.Sobol(self.d, rng=self.rng).random_base2(16)
        self.band = points[boundary.query(points)[0] < (0.01 if self.d == 2 else 0.03)]

    def ask(self, count: int, belief: GpClassifier | None) -> Floats:
        distance, chosen = cKDTree(self.x).query(self.band)[0], []
        for _ in range(count):
            chosen.append(int(distance.argmax()))
            distance = np.minimum(distance, np.linalg.norm(self.band - self.band[chosen[-1]], axis=1))
        return np.asarray(self.band[chosen])


SEARCHES: dict[str, Callable[[Problem, int], Search]] = {
    "phasefront": Phasefront,
    "margin": Margin,
    "P^4 dist^d": SwapAndDistance,
    "LearnerND": Simplices,
    "TPE": Tpe,
    "Sobol": Sobol,
    "oracle": Oracle,
}


def lattice(side: int, d: int) -> Floats:
    """(side^d, d) centres of a regular grid."""
    axis = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(*[axis] * d, indexing="ij"), -1).reshape(-1, d)
