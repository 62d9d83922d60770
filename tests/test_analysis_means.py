"""Means of curves over replicates, with intervals, in one pass."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.analysis.means import RunningMeans, at_steps, grid_of_steps, means_of

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(2, 9), st.integers(1, 5), st.sampled_from([0.5, 0.9, 0.99]))
def test_means_and_intervals_agree_with_scipy(seed: int, replicates: int, points: int, level: float) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(1e4, 1.0, (replicates, points))
    found = means_of(values, level=level)
    for k in range(points):
        own = stats.t.interval(level, replicates - 1, values[:, k].mean(), stats.sem(values[:, k]))
        assert (found.mean[k], found.low[k], found.high[k]) == pytest.approx((values[:, k].mean(), *own), rel=1e-10)
    assert (found.count == replicates).all()


def test_values_that_are_not_finite_are_left_out_and_counted() -> None:
    found = means_of([[1.0, np.nan, np.inf, 5.0], [3.0, 2.0, np.nan, np.nan], [2.0, 4.0, -np.inf, np.nan]])
    assert found.count.tolist() == [3, 2, 0, 1]
    np.testing.assert_allclose(found.mean, [2.0, 3.0, np.nan, 5.0])
    assert np.isnan(found.low[2]) and np.isnan(found.high[2])
    assert (found.low[3], found.high[3]) == (-np.inf, np.inf), "one value does not limit the mean"
    assert found.estimate(0).value == 2.0 and found.estimate(0).covers(2.0)


def test_a_90_percent_interval_covers_the_mean_of_90_percent_of_samples() -> None:
    found = means_of(np.random.default_rng(0).standard_normal((4, 20_000)))
    assert ((found.low <= 0) & (found.high >= 0)).mean() == pytest.approx(0.9, abs=0.01)


def test_collecting_keeps_as_many_numbers_whatever_the_number_of_rows() -> None:
    running = RunningMeans(7)
    sizes = set()
    for row in np.random.default_rng(0).normal(size=(50, 7)):
        running.add(row)
        sizes.add(sum(part.size for part in vars(running).values()))
    assert sizes == {21}


@given(SEEDS)
def test_a_curve_at_its_own_steps_is_itself_even_where_it_is_not_finite(seed: int) -> None:
    random = np.random.default_rng(seed)
    step = np.unique(random.integers(0, 1000, 20))
    value = random.normal(size=len(step))
    value[random.random(len(step)) < 0.3] = random.choice([np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(at_steps(step, value, step), value)


@given(SEEDS)
def test_between_its_steps_a_curve_is_that_of_numpy_in_log_step(seed: int) -> None:
    random = np.random.default_rng(seed)
    step, grid = (np.unique(random.integers(1, 5000, 25)) for _ in range(2))
    value = random.normal(size=len(step))
    own = np.interp(np.log1p(grid), np.log1p(step), value, left=np.nan, right=np.nan)
    np.testing.assert_allclose(at_steps(step, value, grid), own, atol=1e-9)


def test_a_curve_without_steps_has_no_value() -> None:
    assert np.isnan(at_steps(np.array([], dtype=np.int64), np.array([]), np.array([1, 2]))).all()


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=300), st.integers(2, 40))
def test_a_grid_consists_of_recorded_steps_with_both_ends(steps: list[int], most: int) -> None:
    grid = grid_of_steps(steps, most=most)
    assert len(grid) <= most and set(grid.tolist()) <= set(steps)
    assert grid[0] == min(steps) and grid[-1] == max(steps)
    assert (np.diff(grid) > 0).all()
    if len(set(steps)) <= most:
        assert grid.tolist() == sorted(set(steps))
