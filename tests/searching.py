"""Helpers of the search tests: a problem with a known boundary, a fast surrogate, and samplers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from jobs_for_tests import Descent
from numpy.typing import NDArray

from jobs.job import Censored
from orchestrator.axes import Axis
from orchestrator.records import Status, TrialResult
from orchestrator.search.boundary import BoundarySampler, StoppingRule
from orchestrator.search.space import Slice, slices_of
from orchestrator.search.study import SweepStudy
from orchestrator.surface.base import ClassSurface, Evidence, Points, Snap, Surrogate
from orchestrator.target import PhaseTarget
from orchestrator.trial import Trial

JOB = "jobs_for_tests:Descent"
LABELS = tuple(Descent.phases)
AXES = (
    Axis(name="learning_rate", scale="log", values=(0.01, 1.0), between=True),
    Axis(name="weight_decay", scale="linear", values=(0.0, 2.0), between=True),
)
GRID = (
    Axis(name="learning_rate", scale="log", values=tuple(np.geomspace(0.01, 1, 6).tolist())),
    Axis(name="weight_decay", scale="linear", values=tuple(np.linspace(0, 2, 5).tolist())),
)


@dataclass(frozen=True, eq=False)
class Nearest(ClassSurface):
    """The label of the nearest trial, unsure in proportion to its distance: the simplest belief that is one."""

    x: Points
    seen: NDArray[np.int64]
    _classes: int

    @property
    def dimensions(self) -> int:
        return self.x.shape[1]

    @property
    def classes(self) -> int:
        return self._classes

    def belief(self, x: Points) -> NDArray[np.float64]:
        distance = np.linalg.norm(x[:, None] - self.x[None], axis=2)
        found = np.full((len(x), self._classes), 1e-9)
        for k in range(self._classes):
            near = np.where(self.seen == k, np.exp(-40 * distance), 0.0).max(axis=1)
            found[:, k] += near
        return np.asarray(found / found.sum(axis=1, keepdims=True))

    def uncertain_area(self) -> float:
        lattice = np.stack(np.meshgrid(*[np.linspace(0, 1, 12)] * self.dimensions), axis=-1).reshape(
            -1, self.dimensions
        )
        return float(self.in_band(lattice).mean())

    def noise(self) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class NearestSurrogate(Surrogate[Nearest]):
    """A cheap surrogate: it suggests the points of a pool that are farthest from what was tried."""

    classes: int = 3

    def fit(self, evidence: Evidence, *, previous: Nearest | None = None) -> Nearest:
        return Nearest(evidence.x, evidence.label, self.classes)

    def suggest(
        self,
        surface: Nearest,
        evidence: Evidence,
        *,
        pending: Points,
        count: int,
        snap: Snap,
        rng: np.random.Generator,
    ) -> Points:
        pool = np.unique(snap(rng.random((256, surface.dimensions))), axis=0)
        tried = np.concatenate([evidence.x, pending])
        chosen: list[Any] = []
        for _ in range(count):
            away = np.linalg.norm(pool[:, None] - tried[None], axis=2).min(axis=1)
            if away.max() <= 0:
                break
            chosen.append(pool[int(away.argmax())])
            tried = np.concatenate([tried, chosen[-1][None]])
        return np.array(chosen).reshape(-1, surface.dimensions)


def trial_of(setting: Any, replicate: int) -> Trial | None:
    """A trial of the test's job."""
    params = Descent().params_for({"label": "search", **setting})
    return Trial(job=JOB, job_version=1, params=params, replicate=replicate)


def where(trial: Trial) -> tuple[float, float]:
    """Position on the two axes."""
    settings = trial.settings()
    return (math.log10(float(settings["learning_rate"])) + 2) / 2, float(settings["weight_decay"]) / 2


def finished(trial: Trial, phase: str, **observations: float | Censored) -> TrialResult:
    """A trial that ended with a result."""
    return TrialResult(trial_id=trial.id, status=Status.FINISHED, phase=phase, observations=observations)


def failed(trial: Trial) -> TrialResult:
    """A trial that ended without one."""
    return TrialResult(trial_id=trial.id, status=Status.FAILED, error="Traceback")


def disc(trial: Trial) -> TrialResult:
    """Two phases: inside a disc, and around it."""
    x, y = where(trial)
    inside = math.hypot(x - 0.5, y - 0.5) < 0.3
    return finished(trial, LABELS[inside], depth=0.3 - math.hypot(x - 0.5, y - 0.5))


def boundary(
    axes: Sequence[Axis] = AXES,
    *,
    storage: Any = None,
    name: str = "study",
    budget: int = 40,
    surrogate: Surrogate[Any] | None = None,
    space: Sequence[Slice] | None = None,
    uncertain_area: float | None = None,
    **options: Any,
) -> BoundarySampler:
    """A sampler with the cheap surrogate, in memory by default."""
    options = {"start": 16, "batch": 8, "target": PhaseTarget(), "trial_of": trial_of, **options}
    if surrogate is None:
        surrogate = NearestSurrogate()
    return BoundarySampler(
        study=SweepStudy(storage or optuna.storages.InMemoryStorage(), name),
        space=space or slices_of(axes, {}, {}),
        axes=axes,
        phases=LABELS,
        surrogate_of=lambda _: surrogate,
        stop=StoppingRule(budget=budget, uncertain_area=uncertain_area),
        **options,
    )
