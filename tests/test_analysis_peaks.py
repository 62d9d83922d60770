"""Smoothing in log-step, peaks of mean curves, and effective model complexity."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import peak_prominences, savgol_filter
from scipy.spatial import ConvexHull

from orchestrator.analysis import emc, estimate, peaks, smoothing
from orchestrator.analysis.emc import Edge, effective_complexity
from orchestrator.analysis.peaks import find_peak
from orchestrator.analysis.smoothing import lower_envelope, smooth

STEPS = np.unique(np.geomspace(1, 30_000, 150).astype(int))
LOG = np.log1p(STEPS)
SEEDS = st.integers(0, 2**32 - 1)


def descent(log_step: np.ndarray, *, peak: float) -> np.ndarray:
    """A test error that falls, has a peak at step 1,000 and falls again."""
    return 0.2 + 0.6 * np.exp(-log_step / 2) + peak * np.exp(-((log_step - math.log1p(1000)) ** 2))


def noisy(curve: np.ndarray, replicates: int, *, seed: int, offset: float = 0.01, white: float = 0.01) -> np.ndarray:
    random = np.random.default_rng(seed)
    level = offset * random.standard_normal((replicates, 1))
    return curve + level + white * random.standard_normal((replicates, len(curve)))


# Smoothing.


@given(SEEDS, st.floats(1.05, 4.0))
def test_a_line_in_log_step_is_unchanged_by_smoothing(seed: int, window: float) -> None:
    random = np.random.default_rng(seed)
    steps = np.unique(random.integers(0, 100_000, 60))
    line = random.normal() + random.normal() * np.log1p(steps)
    assert smooth(steps, line, window=window) == pytest.approx(line, abs=1e-8)


def test_smoothing_has_no_lag() -> None:
    """A bump stays where it is; an exponential moving average of the same strength moves it to later steps."""
    curve = np.exp(-((LOG - 7.0) ** 2) / 0.1)
    average = np.zeros_like(curve)
    for i in range(1, len(curve)):
        average[i] = average[i - 1] + 0.1 * (curve[i] - average[i - 1])
    top = LOG[np.argmax(curve)]
    assert abs(LOG[np.argmax(smooth(STEPS, curve))] - top) < 0.08
    assert LOG[np.argmax(average)] - top > 0.2


def test_smoothing_agrees_with_a_polynomial_fit_at_each_step() -> None:
    values = np.random.default_rng(3).normal(size=len(STEPS))
    smoothed = smooth(STEPS, values, window=2.0)
    for i in range(0, len(STEPS), 7):
        weight = np.clip(1 - (np.abs(LOG - LOG[i]) / math.log(2.0)) ** 3, 0, None) ** 1.5
        inside = weight > 0
        if inside.sum() > 2:
            fit = np.polyfit(LOG[inside] - LOG[i], values[inside], 1, w=weight[inside])
            assert smoothed[i] == pytest.approx(fit[-1], abs=1e-9)


def test_smoothing_on_equal_spacing_is_near_a_savitzky_golay_filter() -> None:
    steps = np.expm1(np.linspace(0, 9, 400))
    values = np.sin(np.linspace(0, 9, 400)) + 0.1 * np.random.default_rng(0).normal(size=400)
    rough = savgol_filter(values, 31, 1)
    assert smooth(steps, values, window=1.5)[20:-20] == pytest.approx(rough[20:-20], abs=0.06)


def test_smoothing_leaves_nan_out_and_reduces_noise() -> None:
    values = noisy(descent(LOG, peak=0.1), 4, seed=0, offset=0)
    gaps = values.copy()
    gaps[:, 40:43] = np.nan
    smoothed = smooth(STEPS, gaps, window=2.0)
    assert np.isfinite(smoothed).all()
    assert np.std(smoothed - descent(LOG, peak=0.1)) < 0.6 * np.std(values - descent(LOG, peak=0.1))
    assert np.isnan(smooth([1, 2, 1000], [[1.0, 2.0, np.nan]], window=1.1)[0, 2])
    assert smooth(STEPS, values, window=1) == pytest.approx(values)


def test_long_curves_are_smoothed_block_by_block() -> None:
    steps = np.arange(1, 3000)
    values = np.random.default_rng(0).normal(size=len(steps))
    part = slice(1500, 2100)
    assert smooth(steps, values, window=1.1)[1700:1800] == pytest.approx(
        smooth(steps[part], values[part], window=1.1)[200:300]
    )


@pytest.mark.parametrize(
    ("step", "values", "window"), [([2, 1], [0, 0], 2), ([1, 2], [0], 2), ([-1, 2], [0, 0], 2), ([1, 2], [0, 0], 0.5)]
)
def test_smoothing_states_what_it_needs(step: list[int], values: list[int], window: float) -> None:
    with pytest.raises(ValueError, match=r"step|values|window"):
        smooth(step, values, window=window)


@given(SEEDS)
def test_the_lower_envelope_is_the_convex_hull_in_log_log(seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = np.exp(random.normal(size=(2, 40)))
    envelope = lower_envelope(x, y)
    hull = ConvexHull(np.log(np.stack([x, y], 1)))
    assert set(envelope) <= set(hull.vertices)
    assert envelope[0] == np.argmin(x) and envelope[-1] == np.argmin(y)
    assert (np.diff(np.log(y[envelope])) <= 0).all()
    for left, right in itertools.pairwise(envelope):
        inside = (x >= x[left]) & (x <= x[right])
        line = np.interp(np.log(x[inside]), np.log(x[[left, right]]), np.log(y[[left, right]]))
        assert (np.log(y[inside]) >= line - 1e-9).all()


def test_the_envelope_leaves_out_what_has_no_logarithm() -> None:
    assert list(lower_envelope([1, 2, -1, 3, 4, 4], [4, 2, 1, np.nan, 2, 1.5])) == [0, 1, 5]
    assert list(lower_envelope([1, 2, -1, 3], [4, 2, 1, np.nan])) == [0, 1]
    assert list(lower_envelope([], [])) == []


# Peaks.


def test_a_peak_is_found_with_its_place_height_and_minima() -> None:
    values = noisy(descent(LOG, peak=0.15), 6, seed=1)
    search = find_peak(STEPS, values)
    truth = descent(LOG, peak=0.15)
    top = int(np.argmax(np.where(LOG > 5, truth, 0)))
    assert search.peak is not None
    assert search.peak.x.covers(STEPS[top])
    assert search.peak.height.value == pytest.approx(truth[top], abs=0.02)
    assert search.peak.height.low < search.peak.height.value < search.peak.height.high
    assert search.peak.first_minimum_x.value < search.peak.x.value < search.peak.second_minimum_x.value
    assert search.prominence == pytest.approx(search.peak.height.value - search.peak.first_minimum.value)
    assert search.ratio > search.threshold >= 3 and search.p_value <= 0.02


@pytest.mark.parametrize("shape", ["falls", "falls and rises", "constant"])
def test_a_bump_of_one_replicate_is_no_peak(shape: str) -> None:
    """Each curve has bumps above the former fixed prominence of 0.01; their mean has no peak."""
    curve = {
        "falls": descent(LOG, peak=0.0),
        "falls and rises": descent(LOG, peak=0.0) + 0.02 * LOG,
        "constant": 0.4 + 0 * LOG,
    }[shape]
    values = noisy(curve, 8, seed=2, white=0.02)
    low = np.minimum.accumulate(values, axis=1)
    assert ((values - low)[:, :-1].max(1) > 0.02).all()
    search = find_peak(STEPS, values)
    assert search.peak is None and search.p_value > 0.02


def test_prominence_agrees_with_scipy() -> None:
    values = noisy(descent(LOG, peak=0.2), 3, seed=5, white=0.002)
    mean = smooth(STEPS, values).mean(0)
    search = find_peak(STEPS, values)
    assert search.peak is not None
    top = int(np.flatnonzero(search.peak.x.value == STEPS)[0])
    assert search.prominence == pytest.approx(peak_prominences(mean, [top])[0][0])


def test_the_standard_error_is_that_of_the_difference() -> None:
    """An offset that a replicate has at every step cancels in the prominence."""
    values = noisy(descent(LOG, peak=0.15), 6, seed=1, offset=0.0)
    shifted = values + np.arange(6)[:, None]
    assert find_peak(STEPS, shifted).ratio == pytest.approx(find_peak(STEPS, values).ratio)
    scaled = find_peak(STEPS, 7 * values)
    assert scaled.standard_error == pytest.approx(7 * find_peak(STEPS, values).standard_error)
    assert scaled.p_value == find_peak(STEPS, values).p_value


def test_exact_replicates_have_a_peak_only_where_the_curve_has_one() -> None:
    assert find_peak(STEPS, np.tile(descent(LOG, peak=0.15), (3, 1))).peak is not None
    assert find_peak(STEPS, np.tile(descent(LOG, peak=0.0), (3, 1))).peak is None
    assert find_peak([1, 2], np.ones((3, 2))).peak is None


@given(SEEDS)
def test_the_fit_without_a_peak_falls_and_then_rises(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=30)
    fitted = peaks.valley(values)
    steps = np.sign(np.round(np.diff(fitted), 12))
    rising = np.flatnonzero(steps > 0)
    assert not len(rising) or (steps[rising[0] :] >= 0).all()
    assert ((fitted - values) ** 2).sum() <= ((values.mean() - values) ** 2).sum() + 1e-9


def test_the_fit_to_a_curve_without_a_peak_is_the_curve() -> None:
    curve = np.array([5.0, 3.0, 1.0, 1.0, 2.0, 8.0])
    assert peaks.valley(curve) == pytest.approx(curve)


def test_a_peak_needs_replicates_without_nan() -> None:
    with pytest.raises(ValueError, match="2 or more replicates"):
        find_peak(STEPS, descent(LOG, peak=0.1)[None])
    with pytest.raises(ValueError, match="diverged"):
        find_peak(STEPS, np.full((3, len(STEPS)), np.nan))


# Effective model complexity.


def test_complexity_of_a_case_solved_by_hand() -> None:
    """Means 0, 0.05, 0.15, 0.3 at n = 100, 200, 400, 800: the error 0.1 is half-way between 200 and 400 in log n."""
    error = np.array([[0.0, 0.04, 0.14, 0.3], [0.0, 0.06, 0.16, 0.3]])
    found = effective_complexity([100, 200, 400, 800], error)
    assert found.samples.value == pytest.approx(200 * math.sqrt(2))
    assert found.largest_fitted == 200 and found.edge is Edge.INSIDE and found.monotone and found.replicates == 2
    # The four resamples have means (0.04, 0.14), (0.05, 0.15) twice and (0.06, 0.16).
    assert found.samples.low == pytest.approx(200 * 2**0.4)
    assert found.samples.high == pytest.approx(200 * 2**0.6)


def test_complexity_takes_the_mean_and_not_the_median() -> None:
    """0.05, 0.05, 0.9 has the median 0.05 and the mean 1/3."""
    error = np.array([[0.0, 0.05], [0.0, 0.05], [0.0, 0.9]])
    found = effective_complexity([100, 200], error)
    assert found.largest_fitted == 100 and found.edge is Edge.INSIDE and 100 < found.samples.value < 200


@pytest.mark.parametrize("error", [0.1, 0.05, 0.2])
def test_a_mean_error_of_epsilon_itself_is_fitted_after_rounding(error: float) -> None:
    """The floating-point mean of three errors of 0.1 is above 0.1."""
    found = effective_complexity([10, 20, 40, 80], [[0.0, 0.0, error, 0.9]] * 3, epsilon=error)
    assert found.largest_fitted == 40 and found.samples.value == pytest.approx(40) and found.monotone
    assert effective_complexity([10, 20], [[0.0, error]] * 3, epsilon=error).edge is Edge.ABOVE


def test_complexity_is_censored_at_the_edges_of_the_grid() -> None:
    every = effective_complexity([10, 20], np.zeros((3, 2)))
    assert every.edge is Edge.ABOVE and every.samples.value == 20 and every.samples.high == math.inf
    assert every.samples.low == math.inf  # no resample leaves the edge
    none = effective_complexity([10, 20], np.ones((3, 2)))
    assert none.edge is Edge.BELOW and none.largest_fitted == 0 and none.samples.low == 0 == none.samples.high


def test_a_size_that_is_not_fitted_below_a_fitted_one_is_told() -> None:
    found = effective_complexity([10, 20, 40, 80], [[0.0, 0.5, 0.0, 0.5], [0.0, 0.5, 0.0, 0.5]])
    assert not found.monotone and found.not_fitted_below == (20.0,) and found.largest_fitted == 40


def test_complexity_of_one_replicate_has_no_interval_and_missing_ones_are_left_out() -> None:
    one = effective_complexity([10, 20], [[0.0, 0.5]])
    assert (one.samples.low, one.samples.high) == (0, math.inf)
    holes = effective_complexity([10, 20, 40], [[0.0, 0.0, np.nan], [0.0, np.nan, 0.2], [np.nan, 0.1, 0.2]])
    assert holes.largest_fitted == 20 and holes.replicates == 2
    with pytest.raises(ValueError, match="no replicate at n = 20"):
        effective_complexity([10, 20], [[0.0, np.nan]])


@given(SEEDS)
def test_complexity_agrees_with_a_search_for_the_last_crossing(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = np.unique(random.integers(10, 10_000, 8)).astype(float)
    error = random.random((3, len(n)))
    found = effective_complexity(n, error, epsilon=0.5, resamples=10)
    fine = np.geomspace(n[0], n[-1], 20_001)
    below = fine[np.interp(np.log(fine), np.log(n), error.mean(0)) <= 0.5]
    expected = below[-1] if len(below) else n[0]
    assert found.samples.value == pytest.approx(expected, rel=1e-3)


# What they share.


def test_an_interval_of_censored_values_never_lies_between_two_of_them() -> None:
    values = np.array([1.0] * 50 + [np.inf] * 50)
    assert estimate.percentile_interval(values) == (1.0, math.inf)
    assert estimate.percentile_interval(np.array([np.nan])) == (-math.inf, math.inf)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_every_stratum_keeps_its_size_in_a_resample(strata: list[int]) -> None:
    labels = np.array(strata)
    counts = estimate.multiplicities(np.random.default_rng(0), labels, 20)
    for label in set(strata):
        assert (counts[:, labels == label].sum(1) == (labels == label).sum()).all()


def test_the_modules_load_no_large_library() -> None:
    """The command line imports them where they are used; `--help` stays fast."""
    names = ", ".join(module.__name__ for module in (emc, estimate, peaks, smoothing))
    code = f"import {names}, sys; print([m for m in ('scipy', 'pandas', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
