"""Laws of the curve that a search leaves with its sweep: the uncertain area after so many trials."""

from __future__ import annotations

import itertools
import random
from typing import Any

import optuna
import pytest
from searching import LABELS, boundary, disc, where

from orchestrator.search.base import Outcome
from orchestrator.search.boundary import BoundarySampler, Sought
from orchestrator.surface.base import Surrogate
from orchestrator.surface.level import LevelSurrogate
from orchestrator.surface.phase import PhaseSurrogate
from orchestrator.surface.ridge import RidgeSurrogate
from orchestrator.tracking.base import SweepRecord
from orchestrator.tracking.memory import MemoryRecord, MemoryTracker
from orchestrator.trial import Trial

SWEEP = SweepRecord(sweep_id="s" * 32, name="s", job="j", resolved_yaml="", thresholds="")
AREA = "uncertain_area"


def depth(trial: Trial) -> Outcome:
    """A metric that peaks along the first axis, and passes 1/2 about the peak."""
    x, y = where(trial)
    return Outcome(trial=trial, phase=LABELS[0], observations={"depth": 1 / (1 + 40 * (x - 0.3 - 0.4 * y) ** 2)})


SOUGHT: dict[str, tuple[Sought, Surrogate[Any], Any]] = {
    "phases": (Sought(labels=LABELS), PhaseSurrogate(classes=len(LABELS)), disc),
    "level": (Sought(labels=LABELS, metric="depth", level=0.5), LevelSurrogate(level=0.5, classes=3), depth),
    "ridge": (Sought(labels=LABELS, metric="depth", along="learning_rate"), RidgeSurrogate(along=0), depth),
}


def tell(sampler: BoundarySampler, outcome_of: Any, *, most: int, seed: int) -> int:
    """Ask and tell out of order until the search ends, or `most` were told; how many were."""
    waiting: list[Trial] = []
    chance, told = random.Random(seed), 0
    while told < most:
        waiting += sampler.ask(1000)
        if not waiting:
            assert sampler.exhausted
            break
        sampler.tell(outcome_of(waiting.pop(chance.randrange(len(waiting)))))
        told += 1
    return told


@pytest.mark.parametrize("kind", SOUGHT)
def test_every_batch_is_a_point_once_across_kills_whatever_is_sought(kind: str) -> None:
    sought, target, outcome_of = SOUGHT[kind]
    storage, record = optuna.storages.InMemoryStorage(), MemoryRecord()
    seen: list[dict[int, float]] = []
    for turn, most in enumerate((0, 5, 19, 45, 10_000)):
        tracker = MemoryTracker(record)
        tracker.open_sweep(SWEEP)
        sampler = boundary(
            storage=storage,
            budget=64,
            sought=sought,
            target=target,
            progress=lambda points, tracker=tracker: tracker.trace(AREA, points),
        )
        told = tell(sampler, outcome_of, most=most, seed=turn)
        sampler.close()
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


def test_a_search_that_ends_by_its_area_says_that_area() -> None:
    said: list[tuple[int, float]] = []
    sampler = boundary(budget=400, uncertain_area=0.7, progress=said.extend)
    told = tell(sampler, disc, most=10_000, seed=0)
    assert said[-1] == (told, sampler.uncertain_area()) and said[-1][1] <= 0.7
