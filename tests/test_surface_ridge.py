"""The surrogate of a ridge search, on curves with a known peak."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
from scipy.stats import qmc

from orchestrator.surface.base import Evidence
from orchestrator.surface.ridge import PeakSurface, RidgeSurrogate, Standardisation, peaks

STEPS = 201
TRACK = np.linspace(0, 1, STEPS)


def evidence(x: np.ndarray, value: np.ndarray, censored: np.ndarray | None = None) -> Evidence:
    n = len(x)
    return Evidence(
        x=np.asarray(x, dtype=np.float64),
        label=np.full(n, -1, dtype=np.int64),
        value=np.asarray(value, dtype=np.float64),
        censored=np.zeros(n, dtype=np.bool_) if censored is None else censored,
    )


def even(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.asarray(qmc.Sobol(d, rng=np.random.default_rng(seed)).random_base2(10)[:n])


def grid(*counts: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.linspace(0, 1, c) for c in counts], indexing="ij"), -1).reshape(-1, len(counts))


def crest(others: np.ndarray) -> np.ndarray:
    """Where the peak is: it moves with the first of the other axes, and sways with a second."""
    sway = 0.1 * np.sin(4 * others[:, 1]) if others.shape[1] > 1 else 0.0
    return np.asarray(0.3 + 0.35 * others[:, 0] ** 0.8 + sway)


def error(x: np.ndarray) -> np.ndarray:
    """Like a test error: higher than its peak at the left end, falling to the right, with a peak between."""
    t = x[:, 0]
    return 0.6 * np.exp(-t / 0.08) + 0.35 - 0.1 * t + 0.15 * np.exp(-0.5 * ((t - crest(x[:, 1:])) / 0.07) ** 2)


def measured(x: np.ndarray, rng: np.random.Generator, heavy: bool = False) -> np.ndarray:
    """With noise that is largest near the peak; heavy: Student's t with two degrees of freedom, infinite variance."""
    near = np.exp(-0.5 * ((x[:, 0] - crest(x[:, 1:])) / 0.1) ** 2)
    draw = rng.standard_t(2, len(x)) if heavy else rng.standard_normal(len(x))
    return error(x) + (0.005 + 0.01 * near) * draw


def free(x: np.ndarray) -> np.ndarray:
    return x


def lattice(*cells: int) -> Callable[[np.ndarray], np.ndarray]:
    top = np.array(cells) - 1

    def snap(x: np.ndarray) -> np.ndarray:
        return np.round(x * top) / top

    return snap


@lru_cache(maxsize=8)
def searched(total: int, d: int, seed: int, *, heavy: bool = False, batch: int = 16) -> tuple[PeakSurface, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = RidgeSurrogate(along=0)
    x = even(target.start, d, seed)
    value = measured(x, rng, heavy)
    while True:
        known = evidence(x, value)
        surface = target.fit(known)
        if len(x) >= total:
            return surface, x
        count = min(batch, total - len(x))
        new = target.suggest(surface, known, pending=np.empty((0, d)), count=count, snap=free, rng=rng)
        x, value = np.vstack([x, new]), np.concatenate([value, measured(new, rng, heavy)])


def others(d: int) -> np.ndarray:
    return even(40, d - 1, seed=9)


def far_off(surface: PeakSurface) -> np.ndarray:
    u = others(surface.dimensions)
    top = np.array([TRACK[_top(np.column_stack([TRACK, np.tile(row, (STEPS, 1))]))] for row in u])
    return np.asarray(np.abs(surface.peak(u)[0] - top))


def _top(curve: np.ndarray) -> int:
    f = error(curve)
    return int((f - np.maximum(np.minimum.accumulate(f), np.minimum.accumulate(f[::-1])[::-1])).argmax())


def full(d: int, seed: int, *counts: int, heavy: bool = False) -> tuple[PeakSurface, int]:
    x = grid(*counts)
    return RidgeSurrogate(along=0).fit(evidence(x, measured(x, np.random.default_rng(seed), heavy))), len(x)


def test_a_quarter_of_a_grid_finds_the_ridge_within_a_step_of_the_grid() -> None:
    surface, x = searched(54, 2, seed=1)
    on_grid, trials = full(2, 1, 24, 9)
    step = 1 / 23
    assert len(x) * 4 <= trials
    assert far_off(surface).mean() < 0.6 * step
    apart = np.abs(surface.peak(others(2))[0] - on_grid.peak(others(2))[0])
    assert np.quantile(apart, 0.9) < step


@pytest.mark.slow
def test_in_three_dimensions_a_quarter_of_a_grid_is_as_good_as_the_grid() -> None:
    surface, x = searched(200, 3, seed=0, batch=32)
    on_grid, trials = full(3, 0, 17, 7, 7)
    assert len(x) * 4 <= trials
    assert far_off(surface).mean() <= far_off(on_grid).mean()
    assert far_off(surface).mean() < 0.025


def test_heavy_tails_near_the_peak_move_it_little() -> None:
    surface, _ = searched(104, 2, seed=2, heavy=True, batch=20)
    assert far_off(surface).mean() < 0.03


def test_the_interval_holds_the_peak_and_shrinks_with_trials() -> None:
    early, late = (searched(n, 2, seed=5, batch=20)[0] for n in (24, 104))
    u = others(2)
    median, low, high = late.peak(u)
    assert ((low <= median) & (median <= high)).all()
    truth = crest(u)
    assert ((truth > low - 0.01) & (truth < high + 0.01)).mean() > 0.8
    assert late.uncertain_area() < 0.7 * early.uncertain_area()
    assert late.uncertain_area() == pytest.approx((high - low).mean(), abs=0.02)


def test_trials_go_to_the_ridge() -> None:
    _, x = searched(104, 2, seed=5, batch=20)
    away = np.abs(x[24:, 0] - crest(x[24:, 1:]))
    assert np.median(away) < 0.13
    even_away = np.abs(even(1000, 2)[:, 0] - crest(even(1000, 2)[:, 1:]))
    assert np.median(away) < 0.6 * np.median(even_away)


def test_a_higher_plateau_at_an_end_is_no_peak() -> None:
    x = grid(21, 4)
    t = x[:, 0]
    value = 0.5 * np.exp(-0.5 * ((t - 0.35) / 0.06) ** 2) + 1 / (1 + np.exp(-(t - 0.8) / 0.03))
    noisy = value + 0.01 * np.random.default_rng(0).standard_normal(len(x))
    surface = RidgeSurrogate(along=0).fit(evidence(x, noisy))
    np.testing.assert_allclose(surface.peak(np.array([[0.2], [0.7]]))[0], 0.35, atol=0.02)


def test_the_surface_of_a_monotone_metric_reports_no_peak() -> None:
    x = grid(21, 5)
    value = 0.7 - 0.3 * x[:, 0] + 0.01 * np.random.default_rng(0).standard_normal(len(x))
    surface = RidgeSurrogate(along=0).fit(evidence(x, value))
    u = np.array([[0.1], [0.5], [0.9]])
    assert (surface.presence(u) < 0.1).all()
    median, low, high = surface.peak(u)
    np.testing.assert_array_equal([median, low, high], np.zeros((3, 3)))


def test_a_peak_that_fades_is_present_where_it_is_and_absent_where_not() -> None:
    x = grid(25, 9)
    t, u = x[:, 0], x[:, 1]
    value = 0.5 - 0.1 * t + 0.3 * np.maximum(u - 0.4, 0) * np.exp(-0.5 * ((t - 0.5) / 0.1) ** 2)
    noisy = value + 0.003 * np.random.default_rng(0).standard_normal(len(x))
    presence = RidgeSurrogate(along=0).fit(evidence(x, noisy)).presence(np.array([[0.0], [0.15], [0.85], [1.0]]))
    assert (presence[:2] < 0.2).all()
    assert (presence[2:] > 0.95).all()


@pytest.mark.parametrize(
    ("curve", "position", "fall"),
    [
        ([0, 1, 3, 1, 0], 0.5, 3),
        ([9, 2, 1, 4, 0.0], 0.75, 3),
        ([5, 4, 3, 2, 1], 0.0, 0),
        ([1, 2, 3, 4, 5], 1.0, 0),
        ([0, 2, 0, 9, 9], 0.25, 2),
        ([0, 3, 0, 2, 0], 0.25, 3),
    ],
)
def test_a_peak_is_where_the_curve_falls_furthest_on_both_sides(
    curve: list[float], position: float, fall: float
) -> None:
    got, most = peaks(np.array(curve, dtype=float)[:, None], 0.0)
    # The parabola moves it by less than half a step.
    assert abs(got[0] - position) < 0.125
    assert most[0] == fall


def test_between_two_steps_the_peak_is_the_top_of_the_parabola() -> None:
    t = np.linspace(0, 1, 11)
    got, _ = peaks(-((t - 0.437) ** 2)[:, None], 0.0)
    assert got[0] == pytest.approx(0.437)


def test_any_order_of_the_trials_gives_the_same_belief() -> None:
    rng = np.random.default_rng(0)
    x = even(60, 2)
    x[50:] = x[:10]
    value = measured(x, rng)
    value[7] = np.nan
    turn = rng.permutation(60)
    target = RidgeSurrogate(along=0)
    one, other = target.fit(evidence(x, value)), target.fit(evidence(x[turn], value[turn]))
    np.testing.assert_array_equal(one.peak(others(2)), other.peak(others(2)))
    np.testing.assert_array_equal(one.mean(x), other.mean(x))


def test_which_axis_it_is_is_irrelevant() -> None:
    x = grid(21, 5)
    value = measured(x, np.random.default_rng(0))
    u = others(2)
    first = RidgeSurrogate(along=0).fit(evidence(x, value))
    second = RidgeSurrogate(along=1).fit(evidence(x[:, ::-1], value))
    np.testing.assert_allclose(first.peak(u)[0], second.peak(u)[0], atol=0.01)
    assert second.along == 1


def test_the_unit_of_the_metric_is_irrelevant() -> None:
    x = even(64, 2)
    value = measured(x, np.random.default_rng(0))
    one, other = (RidgeSurrogate(along=0).fit(evidence(x, v)) for v in (value, 1000 * value - 7000))
    np.testing.assert_allclose(one.peak(others(2)), other.peak(others(2)), atol=1e-5)
    np.testing.assert_allclose(1000 * one.mean(x) - 7000, other.mean(x), rtol=1e-5)


def test_a_trial_without_a_value_is_ignored() -> None:
    x = even(64, 2)
    value = measured(x, np.random.default_rng(0))
    more = np.vstack([x, even(1000, 2)[-20:]])
    odd = np.concatenate([value, np.full(10, np.nan), np.full(10, np.inf)])
    one, other = RidgeSurrogate(along=0).fit(evidence(x, value)), RidgeSurrogate(along=0).fit(evidence(more, odd))
    np.testing.assert_array_equal(one.peak(others(2)), other.peak(others(2)))


def test_a_lower_bound_lifts_the_metric_where_a_number_would_not() -> None:
    x = grid(15, 5)
    value = 1 + np.exp(-0.5 * ((x[:, 0] - 0.5) / 0.12) ** 2)
    censored = value > 1.5
    cut = np.minimum(value, 1.5)
    as_bounds = RidgeSurrogate(along=0).fit(evidence(x, cut, censored))
    as_numbers = RidgeSurrogate(along=0).fit(evidence(x, cut))
    top = np.array([[0.5, 0.5]])
    assert as_bounds.mean(top)[0] > as_numbers.mean(top)[0] + 0.02


def test_values_over_decades_are_seen_on_a_logarithmic_scale() -> None:
    x = grid(24, 6)
    risk = 1 / (np.abs(x[:, 0] - 0.3 - 0.3 * x[:, 1]) + 0.01)
    noisy = risk * np.exp(0.2 * np.random.default_rng(0).standard_normal(len(x)))
    assert Standardisation.of(noisy).log
    surface = RidgeSurrogate(along=0).fit(evidence(x, noisy))
    u = np.array([[0.2], [0.5], [0.8]])
    np.testing.assert_allclose(surface.peak(u)[0], 0.3 + 0.3 * u[:, 0], atol=0.04)
    assert (surface.mean(x) > 0).all()


def test_without_values_the_search_fills_the_box() -> None:
    x = even(8, 2)
    known = evidence(x, np.full(8, np.nan))
    target = RidgeSurrogate(along=0)
    surface = target.fit(known)
    assert surface.uncertain_area() > 0.85
    assert (surface.presence(others(2)) == 0.5).all()
    new = target.suggest(surface, known, pending=np.empty((0, 2)), count=8, snap=free, rng=np.random.default_rng(0))
    both = np.vstack([x, new])
    gaps = np.linalg.norm(both[:, None] - both[None], axis=-1) + np.eye(16)
    assert gaps.min() > 0.08


@pytest.mark.parametrize("value", [[1.0] * 12, [0.0] * 12, [2.5] * 11 + [np.nan]])
def test_a_flat_metric_is_no_error(value: list[float]) -> None:
    x = even(12, 2)
    known = evidence(x, np.array(value))
    target = RidgeSurrogate(along=1)
    surface = target.fit(known)
    assert (surface.presence(others(2)) <= 1).all()
    new = target.suggest(surface, known, pending=x[:2], count=4, snap=free, rng=np.random.default_rng(0))
    assert new.shape == (4, 2)


@pytest.mark.parametrize("d", [2, 3, 4])
def test_suggestions_are_snapped_and_not_under_way(d: int) -> None:
    rng = np.random.default_rng(0)
    snap = lattice(*[16, 7, 5, 5][:d])
    x = np.unique(snap(even(40, d)), axis=0)
    far = np.linalg.norm(snap(even(1000, d)[-30:])[:, None] - x[None], axis=-1).min(axis=1) > 1e-9
    pending = np.unique(snap(even(1000, d)[-30:])[far], axis=0)[:8]
    known = evidence(x, measured(x, rng))
    target = RidgeSurrogate(along=0)
    new = target.suggest(target.fit(known), known, pending=pending, count=24, snap=snap, rng=rng)
    assert new.shape == (24, d)
    np.testing.assert_array_equal(new, snap(new))
    assert np.linalg.norm(new[:, None] - pending[None], axis=-1).min() > 1e-9


def test_a_new_setting_is_asked_once_in_a_batch_and_a_used_up_grid_not_at_all() -> None:
    snap = lattice(9, 4)
    cells = grid(9, 4)
    left = cells[[3, 17]]
    x = np.delete(cells, [3, 17], axis=0)
    known = evidence(x, measured(x, np.random.default_rng(0)))
    target = RidgeSurrogate(along=0)
    surface = target.fit(known)
    rng = np.random.default_rng(1)
    new = target.suggest(surface, known, pending=np.empty((0, 2)), count=64, snap=snap, rng=rng)
    for row in left:
        assert (np.linalg.norm(new - row, axis=1) < 1e-9).sum() == 1
    assert target.suggest(surface, known, pending=left, count=8, snap=snap, rng=rng).shape == (0, 2)
