"""The progress curve of a search: uncertain area against number of trials."""

from __future__ import annotations

import itertools
import random
from typing import Any

import optuna
import pytest
from searching import LABELS, boundary, disc, finished, where

from orchestrator.records import TrialResult
from orchestrator.search.boundary import BoundarySampler
from orchestrator.surface.base import Surrogate
from orchestrator.surface.level import LevelSurrogate
from orchestrator.surface.phase import PhaseSurrogate
from orchestrator.surface.ridge import RidgeSurrogate
from orchestrator.target import LevelTarget, PhaseTarget, RidgeTarget, Target
from orchestrator.tracking.base import SweepRecord
from orchestrator.tracking.memory import MemoryRecord, MemoryTracker
from orchestrator.trial import Trial

SWEEP = SweepRecord(sweep_id="s" * 32, name="s", job="j", resolved_yaml="", thresholds="")
AREA = "uncertain_area"


def depth(trial: Trial) -> TrialResult:
    """A metric that peaks along the first axis, and passes 1/2 about the peak."""
    x, y = where(trial)
    return finished(trial, LABELS[0], depth=1 / (1 + 40 * (x - 0.3 - 0.4 * y) ** 2))


SEARCHES: dict[str, tuple[Target, Surrogate[Any], Any]] = {
    "phases": (PhaseTarget(), PhaseSurrogate(classes=len(LABELS)), disc),
    "level": (LevelTarget(metric="depth", level=0.5), LevelSurrogate(level=0.5, classes=3), depth),
    "ridge": (RidgeTarget(ridge="depth", along="learning_rate"), RidgeSurrogate(along=0), depth),
}


def tell(sampler: BoundarySampler, result_of: Any, *, most: int, seed: int) -> int:
    """Ask and tell out of order until the search ends, or `most` were told; how many were."""
    waiting: list[Trial] = []
    chance, told = random.Random(seed), 0
    while told < most:
        waiting += sampler.ask(1000)
        if not waiting:
            assert sampler.exhausted
            break
        sampler.tell(result_of(waiting.pop(chance.randrange(len(waiting)))))
        told += 1
    return told


@pytest.mark.parametrize("kind", SEARCHES)
def test_every_batch_is_a_point_once_across_kills_for_every_target(kind: str) -> None:
    target, surrogate, result_of = SEARCHES[kind]
    storage, record = optuna.storages.InMemoryStorage(), MemoryRecord()
    seen: list[dict[int, float]] = []
    for turn, most in enumerate((0, 5, 19, 45, 10_000)):
        tracker = MemoryTracker(record)
        tracker.open_sweep(SWEEP)
        sampler = boundary(
            storage=storage,
            budget=64,
            target=target,
            surrogate=surrogate,
            progress=lambda points, tracker=tracker: tracker.trace(AREA, points),
        )
        told = tell(sampler, result_of, most=most, seed=turn)
        tracker.close()
        seen.append(dict(record.traces.get((SWEEP.sweep_id, AREA), {})))
    assert told == 64  # those of before are told anew
    for before, after in itertools.pairwise(seen):
        assert before.items() <= after.items(), "what was written stays"
    curve = seen[-1]
    steps = list(curve)
    assert steps == sorted(steps) and steps[0] > 0 and steps[-1] < 64 and len(steps) >= 5
    assert all(0 <= area <= 1 for area in curve.values())
    assert seen[0] == {} and len(seen[3]) > len(seen[2])


def test_a_point_that_only_the_study_holds_is_made_good() -> None:
    """As after a kill between the study's row and the record's."""
    storage = optuna.storages.InMemoryStorage()
    sampler = boundary(storage=storage, budget=64)
    tell(sampler, disc, most=40, seed=0)
    said: list[tuple[int, float]] = []
    boundary(storage=storage, budget=64, progress=said.extend)
    assert len(said) >= 2 and [step for step, _ in said] == sorted({step for step, _ in said})


def test_a_search_that_stops_by_uncertain_area_reports_that_area() -> None:
    said: list[tuple[int, float]] = []
    sampler = boundary(budget=400, uncertain_area=0.7, progress=said.extend)
    told = tell(sampler, disc, most=10_000, seed=0)
    assert said[-1] == (told, sampler.proposer.uncertain_area()) and said[-1][1] <= 0.7
