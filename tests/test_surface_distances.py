"""The weight of a further trial of the same grid setting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.surface.base import Evidence, Points, Surrogate
from orchestrator.surface.level import LevelSurrogate
from orchestrator.surface.phase import PhaseSurrogate
from orchestrator.surface.placement import Distances

SIDE = 12


def cells(side: int = SIDE, d: int = 2) -> Points:
    return np.stack(np.meshgrid(*[(np.arange(side) + 0.5) / side] * d, indexing="ij"), -1).reshape(-1, d)


def to_cells(x: Points) -> Points:
    return (np.floor(np.clip(x, 0, 1 - 1e-9) * SIDE) + 0.5) / SIDE


@given(st.lists(st.integers(0, 15), max_size=30), st.integers(1, 4))
def test_taking_one_after_another_is_measuring_anew(taken: list[int], replicates: int) -> None:
    pool = cells(4)
    tried = pool[[3, 3, 9]]
    kept = Distances(pool, tried, replicates=replicates)
    for at in taken:
        kept.take(at)
    anew = Distances(pool, np.concatenate([tried, pool[taken]]), replicates=replicates)
    np.testing.assert_allclose(kept.away, anew.away, atol=1e-12)


def test_a_setting_has_no_more_trials_than_its_replicates() -> None:
    pool = cells(3)
    found = Distances(pool, np.concatenate([pool[:2], pool[:1]]), replicates=2)
    assert found.away[0] == 0
    assert found.away[1] > 0
    found.take(1)
    assert found.away[1] == 0


def test_another_trial_counts_less_than_a_new_setting_and_less_each_time() -> None:
    pool = cells(3)
    found = Distances(pool, pool[:1], replicates=9)
    worth = []
    for _ in range(3):
        worth.append(found.away[0] ** 2)
        found.take(0)
    np.testing.assert_allclose(worth, np.array([1 / 2, 1 / 3, 1 / 4]) / 9)
    assert worth[0] < found.away[1] ** 2


def test_without_any_trial_every_position_is_far() -> None:
    assert (Distances(cells(3), np.empty((0, 2))).away >= 1).all()


def noisy(x: Points, random: np.random.Generator) -> Evidence:
    """A boundary at x + y = 1; one label in three is odd at a distance of 0.05."""
    value = x.sum(axis=1) - 1 + 0.15 * random.standard_normal(len(x))
    return Evidence(x=x, label=(value > 0).astype(np.int64), value=value, censored=np.zeros(len(x), dtype=np.bool_))


def suggested(target: Surrogate, told: Evidence, *, count: int = 24, snap=to_cells) -> Points:
    return target.suggest(
        target.fit(told),
        told,
        pending=np.empty((0, 2)),
        count=count,
        snap=snap,
        rng=np.random.default_rng(1),
    )


@pytest.mark.parametrize(
    "target_of",
    [lambda r: PhaseSurrogate(classes=2, replicates=r), lambda r: LevelSurrogate(level=0.0, replicates=r)],
    ids=["phase", "level"],
)
def test_replicates_go_where_labels_disagree(target_of) -> None:
    """All settings about the boundary are tried: with replicates they are tried again, without, others are."""
    random = np.random.default_rng(0)
    pool = cells()
    beside = np.abs(pool.sum(axis=1) - 1) < 0.2
    x = np.concatenate([pool[beside], pool[~beside][::4]])
    told = noisy(x, random)
    again = suggested(target_of(3), told)
    at = {tuple(p) for p in x.round(9)}
    repeats = np.array([p for p in again if tuple(p.round(9)) in at])
    assert len(repeats) > len(again) / 2
    assert np.median(np.abs(repeats.sum(axis=1) - 1)) <= 1.5 / SIDE
    fresh = suggested(target_of(1), told)
    assert not {tuple(p) for p in fresh.round(9)} & at


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize(
    "target",
    [PhaseSurrogate(classes=2, replicates=64), LevelSurrogate(level=0.0, replicates=64)],
    ids=["phase", "level"],
)
def test_no_setting_is_tried_again_where_there_are_always_new_ones(target: Surrogate, d: int) -> None:
    """The boundary lies by a corner, where positions that would leave the box are pushed onto one another."""
    random = np.random.default_rng(0)
    x = np.concatenate([random.random((60, d)), 0.1 * random.random((60, d))])
    value = x.sum(axis=1) - 0.03 + 0.03 * random.standard_normal(len(x))
    told = Evidence(x=x, label=(value > 0).astype(np.int64), value=value, censored=np.zeros(len(x), dtype=np.bool_))
    found = target.suggest(
        target.fit(told),
        told,
        pending=np.empty((0, d)),
        count=256,
        snap=lambda points: points,
        rng=np.random.default_rng(1),
    )
    everything = np.concatenate([x, found])
    assert len(found) == 256
    assert len(np.unique(everything, axis=0)) == len(everything)
