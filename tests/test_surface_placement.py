"""Placement of the next trials."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import qmc

from orchestrator.surface.base import Evidence, Points
from orchestrator.surface.phase import PhaseSurrogate, _near_boundary, by_certainty, fit_classifier


def sobol(n: int, d: int = 2, seed: int = 0) -> np.ndarray:
    return qmc.Sobol(d, rng=np.random.default_rng(seed)).random_base2(int(np.log2(n)))


def gap(x: np.ndarray) -> np.ndarray:
    return x[:, 1] - 0.5 - 0.2 * np.sin(5 * x[:, 0])


def evidence(x: np.ndarray, label: np.ndarray) -> Evidence:
    return Evidence(x=x, label=label, value=np.full(len(x), np.nan), censored=np.zeros(len(x), dtype=bool))


def as_is(x: Points) -> Points:
    return x


def eighths(x: Points) -> Points:
    return np.round(x * 8) / 8


def suggest(x, label, *, count=16, snap=as_is, pending=None, seed=1, classes=2, previous=None) -> np.ndarray:
    target = PhaseSurrogate(classes=classes)
    told = evidence(x, label)
    pending = np.empty((0, x.shape[1])) if pending is None else pending
    return target.suggest(
        target.fit(told, previous=previous),
        told,
        pending=pending,
        count=count,
        snap=snap,
        rng=np.random.default_rng(seed),
    )


def test_suggestions_are_near_the_boundary() -> None:
    x = sobol(64)
    found = suggest(x, (gap(x) > 0).astype(np.int64), count=32)
    assert found.shape == (32, 2)
    assert np.median(np.abs(gap(found))) < 0.25 * np.median(np.abs(gap(sobol(1024))))


def test_suggestions_are_distinct_new_and_in_the_box() -> None:
    x = sobol(64)
    found = suggest(x, (gap(x) > 0).astype(np.int64), count=40)
    assert found.min() >= 0 and found.max() <= 1
    everything = np.concatenate([x, found])
    assert len(np.unique(everything, axis=0)) == len(everything)


def test_the_same_evidence_and_randomness_give_the_same_batch() -> None:
    x = sobol(64)
    label = (gap(x) > 0).astype(np.int64)
    np.testing.assert_array_equal(suggest(x, label), suggest(x, label))


def test_pending_trials_are_not_asked_again_and_push_others_away() -> None:
    x = sobol(64)
    label = (gap(x) > 0).astype(np.int64)
    first = suggest(x, label, count=16)
    apart = [
        np.linalg.norm(suggest(x, label, count=4, pending=given)[:3, None] - first, axis=2).min(axis=1).mean()
        for given in (None, first)
    ]
    assert apart[1] > 2 * apart[0]


def test_suggestions_keep_to_what_a_trial_can_have() -> None:
    x = np.unique(eighths(sobol(32)), axis=0)
    found = suggest(x, (gap(x) > 0).astype(np.int64), snap=eighths)
    np.testing.assert_array_equal(found, eighths(found))
    assert not {tuple(p) for p in found} & {tuple(p) for p in x}


@pytest.mark.parametrize("left", [0, 5])
def test_fewer_only_where_nothing_is_left(left: int) -> None:
    x = np.stack(np.meshgrid(*[np.arange(9) / 8] * 2), -1).reshape(-1, 2)
    x = x[np.random.default_rng(0).permutation(81)][: 81 - left]
    found = suggest(x, (gap(x) > 0).astype(np.int64), snap=eighths, count=8)
    assert len(np.unique(found, axis=0)) == left


def test_one_class_alone_sends_trials_into_voids() -> None:
    x = 0.5 * sobol(64)
    found = suggest(x, np.zeros(64, dtype=np.int64), count=8)
    assert np.all(found.max(axis=1) > 0.5)
    assert np.linalg.norm(found[0] - 1) < 0.05


@pytest.mark.parametrize("count", [6, 24])
@pytest.mark.parametrize("d", [2, 3])
def test_no_large_ball_of_the_box_stays_unseen(d: int, count: int) -> None:
    """A boundary by one wall holds the search there; the far half, where there is no trial, is explored too."""
    x = sobol(64, d) * np.array([0.5] + [1.0] * (d - 1))
    label = (x[:, 0] < 0.1).astype(np.int64)
    while len(x) < 160:
        found = suggest(x, label, count=count, seed=len(x))
        x = np.concatenate([x, found])
        label = (x[:, 0] < 0.1).astype(np.int64)
    centres = 0.12 + 0.76 * sobol(1024, d, seed=5)
    nearest = np.linalg.norm(centres[:, None] - x, axis=2).min(axis=1).max()
    volume = {2: np.pi, 3: 4 / 3 * np.pi}[d] * nearest**d
    assert volume < 1.3 / 6 / 160 ** (1 / 3), "a third over what is promised is for the finite pool of centres"
    assert np.mean(np.abs(x[64:, 0] - 0.1) < 0.05) > 0.3, "and the boundary gets its share"


def test_trials_without_a_label_count_as_tried() -> None:
    x = eighths(sobol(64))
    found = suggest(x, np.full(64, -1), snap=eighths, count=64)
    assert len(found) == 81 - len(np.unique(x, axis=0))
    assert not {tuple(p) for p in found} & {tuple(p) for p in x}


def test_no_setting_is_repeated_while_others_are_left() -> None:
    x = np.unique(eighths(sobol(64)), axis=0)
    found = suggest(x, (gap(x) > 0).astype(np.int64), count=16, snap=eighths)
    assert not {tuple(p) for p in found} & {tuple(p) for p in x}


def test_four_phases_in_three_dimensions() -> None:
    x = sobol(128, 3)
    label = (2 * (x[:, 0] > 0.4) + (x[:, 1] + 0.3 * x[:, 2] > 0.6)).astype(np.int64)
    found = suggest(x, label, count=32, classes=5)
    apart = np.minimum(np.abs(found[:, 0] - 0.4), np.abs(found[:, 1] + 0.3 * found[:, 2] - 0.6))
    assert np.median(apart) < 0.08


def test_a_single_suggestion_can_be_asked() -> None:
    x = sobol(64)
    assert suggest(x, (gap(x) > 0).astype(np.int64), count=1).shape == (1, 2)


def test_generated_positions_gather_about_the_boundary() -> None:
    x = sobol(128)
    surface = fit_classifier(x, (gap(x) > 0).astype(np.int64), classes=2)
    made = _near_boundary(surface, 2, np.random.default_rng(0))
    assert made.min() >= 0
    assert made.max() <= 1
    thirds = np.array_split(np.abs(gap(made)), 3)
    medians = [float(np.median(third)) for third in thirds]
    assert medians[2] < medians[0] < 0.05, "of the whole box it is 0.25"
    least = made[by_certainty(surface, made)[:20]]
    assert np.median(np.abs(gap(least))) < 0.03


def test_a_search_beats_a_sequence_and_finds_the_island() -> None:
    def truth(at: np.ndarray) -> np.ndarray:
        return ((gap(at) > 0.1) | (np.linalg.norm(at - [0.7, 0.15], axis=1) < 0.1)).astype(np.int64)

    target, query = PhaseSurrogate(classes=2), sobol(4096, seed=9)
    x = sobol(64, seed=3)
    surface = target.fit(evidence(x, truth(x)))
    for step in range(4):
        more = target.suggest(
            surface,
            evidence(x, truth(x)),
            pending=np.empty((0, 2)),
            count=24,
            snap=as_is,
            rng=np.random.default_rng(step),
        )
        x = np.concatenate([x, more])
        surface = target.fit(evidence(x, truth(x)), previous=surface)
    spread = sobol(256, seed=3)[: len(x)]
    even = fit_classifier(spread, truth(spread), classes=2)
    wrong = [np.mean(s.label(query) != truth(query)) for s in (surface, even)]
    assert wrong[0] < 0.5 * wrong[1]
    assert surface.label(np.array([[0.7, 0.15]]))[0] == 1
