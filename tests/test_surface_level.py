"""The surrogate of a level search: how trials, bounds and labels determine where a metric passes the level."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import qmc

from orchestrator.surface.base import ClassSurface, Evidence
from orchestrator.surface.level import LevelSurface, LevelSurrogate, level_observations
from orchestrator.surface.regression import AT_LEAST, AT_MOST, EXACT

NOTHING = np.empty((0, 2))
AXIS = (np.arange(100) + 0.5) / 100
MAP = np.stack(np.meshgrid(AXIS, AXIS, indexing="ij"), -1).reshape(-1, 2)


def free(x: np.ndarray) -> np.ndarray:
    return x


def lattice(cells: int) -> Callable[[np.ndarray], np.ndarray]:
    def snap(x: np.ndarray) -> np.ndarray:
        return (np.minimum(np.floor(x * cells), cells - 1) + 0.5) / cells

    return snap


def evidence(
    x: np.ndarray, value: np.ndarray, *, label: np.ndarray | None = None, censored: np.ndarray | None = None
) -> Evidence:
    n = len(x)
    return Evidence(
        x=np.asarray(x, dtype=np.float64),
        label=np.full(n, -1, dtype=np.int64) if label is None else label,
        value=np.asarray(value, dtype=np.float64),
        censored=np.zeros(n, dtype=np.bool_) if censored is None else censored,
    )


def height(x: np.ndarray) -> np.ndarray:
    """Signed distance, nearly, to a wavy boundary."""
    return (x[:, 1] - 0.5 - 0.18 * np.sin(5.5 * x[:, 0] + 1)) / 1.2


def accuracy(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A metric that saturates within a fiftieth of the box, with noise; near the boundary 5% are on the wrong side."""
    h = height(x)
    o = 1 / (1 + np.exp(-h / 0.015)) + 0.03 * rng.standard_normal(len(x))
    wrong = (np.abs(h) < 0.05) & (rng.random(len(x)) < 0.05)
    return np.clip(np.where(wrong, 1 - o, o), 0, 1)


def even(n: int, d: int = 2, seed: int = 0) -> np.ndarray:
    return np.asarray(qmc.Sobol(d, rng=np.random.default_rng(seed)).random_base2(12)[:n])


def searched(total: int, seed: int, batch: int = 32) -> tuple[LevelSurface, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = LevelSurrogate(level=0.5)
    x = even(64, seed=seed)
    value = accuracy(x, rng)
    while True:
        known = evidence(x, value)
        surface = target.fit(known)
        if len(x) >= total:
            return surface, x
        new = target.suggest(surface, known, pending=NOTHING, count=batch, snap=free, rng=rng)
        x, value = np.vstack([x, new]), np.concatenate([value, accuracy(new, rng)])


def wrong_area(surface: ClassSurface) -> float:
    return float((surface.label(MAP) != (height(MAP) >= 0)).mean())


def test_the_boundary_is_found_better_than_by_an_even_design_of_more_trials() -> None:
    surface, _ = searched(160, seed=3)
    rng = np.random.default_rng(3)
    x = even(256, seed=3)
    dense = LevelSurrogate(level=0.5).fit(evidence(x, accuracy(x, rng)))
    assert wrong_area(surface) < 0.0025
    assert wrong_area(surface) < 0.7 * wrong_area(dense)
    assert surface.uncertain_area() < 0.02


def test_most_trials_go_near_the_boundary_and_some_to_the_voids() -> None:
    _, x = searched(160, seed=4)
    away = np.abs(height(x[64:]))
    assert np.median(away) < 0.04
    assert away.max() > 0.15


def test_the_belief_is_a_distribution_and_the_band_its_middle() -> None:
    surface, _ = searched(64, seed=1)
    belief = surface.belief(MAP)
    assert belief.shape == (len(MAP), 2)
    np.testing.assert_allclose(belief.sum(axis=1), 1.0)
    np.testing.assert_array_equal(surface.label(MAP), belief.argmax(axis=1))
    np.testing.assert_array_equal(surface.in_band(MAP), belief.max(axis=1) < 0.95)
    assert surface.uncertain_area() == pytest.approx(surface.in_band(MAP).mean(), abs=0.02)
    assert (surface.classes, surface.dimensions) == (2, 2)


def test_any_order_of_the_trials_gives_the_same_belief() -> None:
    rng = np.random.default_rng(0)
    x = even(96)
    x[64:80] = x[:16]
    value = accuracy(x, rng)
    label = np.full(96, -1)
    value[5:9], label[5:9] = np.nan, 2
    turn = rng.permutation(96)
    target = LevelSurrogate(level=0.5, classes=3)
    one = target.fit(evidence(x, value, label=label))
    other = target.fit(evidence(x[turn], value[turn], label=label[turn]), previous=one)
    np.testing.assert_array_equal(one.belief(MAP), other.belief(MAP))
    assert one.noise() == other.noise()


def test_the_unit_and_the_zero_of_a_metric_are_irrelevant() -> None:
    rng = np.random.default_rng(0)
    x = even(64)
    value = accuracy(x, rng)
    one = LevelSurrogate(level=0.5).fit(evidence(x, value))
    other = LevelSurrogate(level=-950.0).fit(evidence(x, 100 * value - 1000))
    np.testing.assert_allclose(one.belief(MAP), other.belief(MAP), atol=1e-6)


def test_a_metric_that_never_saturates_is_followed_too() -> None:
    x = even(64)
    rng = np.random.default_rng(0)
    surface = LevelSurrogate(level=0.1).fit(evidence(x, height(x) + 0.1 + 0.02 * rng.standard_normal(64)))
    assert wrong_area(surface) < 0.015


def test_steps_over_decades_are_seen_on_a_logarithmic_scale() -> None:
    x = even(64)
    steps = 10 ** (3 + 4 * height(x))
    surface = LevelSurrogate(level=1000.0).fit(evidence(x, steps))
    assert wrong_area(surface) < 0.01


def test_not_reached_within_a_horizon_beyond_the_level_is_above_it() -> None:
    x = even(64)
    steps = 10 ** (3 + 4 * height(x))
    horizon = 1500.0
    censored = steps > horizon
    surface = LevelSurrogate(level=1000.0).fit(evidence(x, np.minimum(steps, horizon), censored=censored))
    assert wrong_area(surface) < 0.015
    assert surface.belief(np.array([[0.5, 0.98]]))[0, 1] > 0.95


def test_not_reached_within_a_horizon_below_the_level_is_no_evidence_for_below() -> None:
    """The trials of a region were stopped early: nobody knows whether they would have passed the level."""
    x = even(128)
    steps = 10 ** (3 + 4 * height(x))
    censored = x[:, 0] > 0.7
    cut = np.where(censored, np.minimum(steps, 30.0), steps)
    target = LevelSurrogate(level=1000.0)
    as_bounds = target.fit(evidence(x, cut, censored=censored))
    as_numbers = target.fit(evidence(x, cut))
    # In truth above; seen only to be more than 30.
    there = np.array([[0.95, 0.95], [0.9, 0.85]])
    assert (as_numbers.belief(there)[:, 1] < 0.05).all()
    assert (as_bounds.belief(there)[:, 1] > 0.4).all()


def test_a_trial_without_value_and_label_is_ignored() -> None:
    rng = np.random.default_rng(0)
    x = even(64)
    value = accuracy(x, rng)
    more = np.vstack([x, rng.random((20, 2))])
    one = LevelSurrogate(level=0.5).fit(evidence(x, value))
    other = LevelSurrogate(level=0.5).fit(evidence(more, np.concatenate([value, np.full(20, np.nan)])))
    np.testing.assert_array_equal(one.belief(MAP), other.belief(MAP))


def test_a_label_replaces_a_missing_value() -> None:
    x = even(64)
    side = (height(x) >= 0).astype(np.int64)
    surface = LevelSurrogate(level=0.5).fit(evidence(x, np.full(64, np.nan), label=side))
    assert wrong_area(surface) < 0.04


def test_diverged_is_a_separate_class() -> None:
    rng = np.random.default_rng(0)
    x = even(128)
    value = accuracy(x, rng)
    gone = x[:, 0] > 0.75
    value[gone] = np.nan
    label = np.where(gone, 2, -1)
    surface = LevelSurrogate(level=0.5, classes=4).fit(evidence(x, value, label=label))
    truth = np.where(MAP[:, 0] > 0.75, 2, height(MAP) >= 0)
    assert (surface.label(MAP) != truth).mean() < 0.03
    belief = surface.belief(MAP)
    np.testing.assert_allclose(belief.sum(axis=1), 1.0)
    assert (belief[:, 3] == 0).all()


@pytest.mark.parametrize("shown", [0, 1])
def test_with_one_side_only_the_rest_of_the_box_stays_open(shown: int) -> None:
    corner = 0.2 * even(16)
    surface = LevelSurrogate(level=0.5).fit(evidence(corner, np.full(16, float(shown))))
    near, far = surface.belief(np.array([[0.1, 0.1], [0.95, 0.95]]))[:, shown]
    assert near > 0.95
    assert 0.4 < far < 0.95
    assert surface.uncertain_area() > 0.2


def test_only_diverged_trials_so_far_are_no_error() -> None:
    x = even(16)
    known = evidence(x, np.full(16, np.nan), label=np.full(16, 2))
    target = LevelSurrogate(level=0.5, classes=3)
    surface = target.fit(known)
    assert (surface.label(x) == 2).all()
    new = target.suggest(surface, known, pending=NOTHING, count=8, snap=free, rng=np.random.default_rng(0))
    assert new.shape == (8, 2)


@pytest.mark.parametrize("value", [0.5, 0.0, 7.0])
def test_trials_that_all_show_the_same_number_are_no_error(value: float) -> None:
    x = even(32)
    surface = LevelSurrogate(level=0.5).fit(evidence(x, np.full(32, value)))
    assert (surface.label(x) == int(value >= 0.5)).all()


def test_noise_is_the_share_of_trials_on_the_wrong_side() -> None:
    rng = np.random.default_rng(0)
    x = even(512)
    clean = (height(x) >= 0).astype(float)
    value = np.where(rng.random(512) < 0.1, 1 - clean, clean)
    surface = LevelSurrogate(level=0.5).fit(evidence(x, value))
    assert surface.noise() == pytest.approx(0.1, abs=0.04)
    assert wrong_area(surface) < 0.04


@pytest.mark.parametrize("d", [2, 3, 4])
def test_suggestions_are_new_snapped_distinct_and_as_many_as_asked(d: int) -> None:
    rng = np.random.default_rng(0)
    snap = lattice(12)
    x = np.unique(snap(even(64, d=d)), axis=0)
    pending = np.unique(snap(rng.random((20, d))), axis=0)
    known = evidence(x, x[:, 0] + 0.3 * x[:, 1])
    target = LevelSurrogate(level=0.6)
    new = target.suggest(target.fit(known), known, pending=pending, count=24, snap=snap, rng=rng)
    assert new.shape == (24, d)
    np.testing.assert_array_equal(new, snap(new))
    rows = {tuple(np.round(r, 9)) for r in np.vstack([x, pending, new])}
    assert len(rows) == len({tuple(np.round(r, 9)) for r in np.vstack([x, pending])}) + 24


def test_the_last_cells_of_a_grid_are_suggested_and_no_others() -> None:
    snap = lattice(25)
    cells = np.unique(snap(MAP[np.random.default_rng(0).permutation(len(MAP))]), axis=0)
    left = cells[[5, 300, 600]]
    x = np.delete(cells, [5, 300, 600], axis=0)
    known = evidence(x, accuracy(x, np.random.default_rng(1)))
    target = LevelSurrogate(level=0.5)
    rng = np.random.default_rng(2)
    surface = target.fit(known)
    new = target.suggest(surface, known, pending=NOTHING, count=32, snap=snap, rng=rng)
    assert {tuple(r) for r in new} == {tuple(r) for r in left}
    none = target.suggest(surface, known, pending=left, count=32, snap=snap, rng=rng)
    assert none.shape == (0, 2)


def test_pending_trials_push_the_batch_away() -> None:
    rng = np.random.default_rng(0)
    x = even(64)
    known = evidence(x, accuracy(x, rng))
    target = LevelSurrogate(level=0.5)
    surface = target.fit(known)
    first = target.suggest(surface, known, pending=NOTHING, count=16, snap=free, rng=np.random.default_rng(1))
    second = target.suggest(surface, known, pending=first, count=16, snap=free, rng=np.random.default_rng(1))
    gap = np.linalg.norm(first[:, None] - second[None], axis=-1).min()
    assert gap > 0.005


def test_a_value_near_a_plateau_is_a_bound_and_one_near_the_level_a_number() -> None:
    value = np.array([0.0, 0.0, 0.01, 0.45, 0.5, 0.6, 0.99, 1.0, 1.0, np.nan])
    none = np.zeros(10, dtype=np.bool_)
    got = level_observations(0.51, value, none, np.full(10, -1))
    assert got.kind[[0, 3, 4, 5, 7]].tolist() == [AT_MOST, EXACT, EXACT, EXACT, AT_LEAST]
    assert np.isnan(got.value[9])
    assert got.above.tolist() == [False, False, False, False, False, True, True, True, True, False]
    assert (np.diff(got.value[:9]) >= 0).all()


def test_a_level_on_the_plateau_itself_parts_it_from_what_is_below() -> None:
    """`level: 1.0` for an accuracy that reaches exactly 1."""
    x = even(128)
    value = np.minimum(1 / (1 + np.exp(-(height(x) / 0.02 + 3))), 0.95) / 0.95
    surface = LevelSurrogate(level=1.0).fit(evidence(x, value))
    assert wrong_area(surface) < 0.02


def test_an_infinite_value_is_beyond_every_level() -> None:
    x = even(64)
    value = height(x) * 3
    value[value > 0.5] = np.inf
    surface = LevelSurrogate(level=0.0).fit(evidence(x, value))
    assert np.isfinite(surface.belief(MAP)).all()
    assert wrong_area(surface) < 0.02


def test_a_bound_below_the_level_shows_no_class() -> None:
    x = even(64)
    far = height(x) >= 0.1
    value = np.where(far, 0.97 + 0.001 * np.arange(64) / 64, 0.2)
    surface = LevelSurrogate(level=0.5).fit(evidence(x, value, censored=~far))
    assert surface.shown.tolist() == [False, True]

    # A trial that ended early, surrounded by trials above the level, contradicts nothing.
    value, ended = np.clip(0.5 + 3 * (x[:, 0] - 0.3), 0, 1), np.zeros(64, dtype=np.bool_)
    inside = int(np.linalg.norm(x - [0.8, 0.5], axis=1).argmin())
    value[inside], ended[inside] = 0.1, True
    surface = LevelSurrogate(level=0.5).fit(evidence(x, value, censored=ended))
    assert surface.shown.tolist() == [True, True]
    assert surface.noise() == 0
