"""Times to an event: survival curves, medians, log-rank tests, against lifelines, statsmodels, scipy and by hand."""

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.analysis.logrank import logrank, paired, scores
from orchestrator.analysis.survival import contains, kaplan_meier, median_time, turnbull

lifelines = pytest.importorskip("lifelines", reason="lifelines is a test dependency")
survfunc = pytest.importorskip("statsmodels.duration.survfunc", reason="statsmodels is a test dependency")

SEEDS = st.integers(0, 2**32 - 1)
INF = math.inf


def right_censored(seed: int, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Times with ties, some of them censored."""
    random = np.random.default_rng(seed)
    return np.round(np.exp(random.normal(3, 1, count))) + 1, random.random(count) < 0.7


def interval_censored(seed: int, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    time = np.exp(random.normal(7, 1, count))
    above, to = time * random.uniform(0.5, 1, count), time * random.uniform(1, 1.6, count)
    return above, np.where(random.random(count) < 0.2, INF, to)


def on_a_schedule(time: np.ndarray, schedule: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(previous report, report] of each time; not reached after the last report."""
    place = np.searchsorted(schedule, time)
    return np.append(0, schedule)[place], np.append(schedule, INF)[place]


# Kaplan-Meier.


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_kaplan_meier_agrees_with_lifelines_and_statsmodels(seed: int) -> None:
    time, reached = right_censored(seed)
    reached[0] = True
    curve = kaplan_meier(time, reached, level=0.95)
    fitted = lifelines.KaplanMeierFitter().fit(time, reached)
    theirs = fitted.survival_function_.to_numpy()[1:, 0]
    bounds = fitted.confidence_interval_.to_numpy()[1:]
    inside = (curve.survival > 0) & (curve.survival < 1)
    assert curve.survival == pytest.approx(theirs, abs=1e-9)
    assert curve.low[inside] == pytest.approx(bounds[inside, 0], abs=1e-6)
    assert curve.high[inside] == pytest.approx(bounds[inside, 1], abs=1e-6)
    assert curve.median.value == fitted.median_survival_time_
    right = survfunc.SurvfuncRight(time, reached)
    assert np.interp(right.surv_times, curve.time, curve.survival) == pytest.approx(right.surv_prob, abs=1e-9)


def test_the_median_interval_is_where_the_bounds_cross_one_half() -> None:
    time, reached = right_censored(4, 60)
    median = kaplan_meier(time, reached, level=0.95).median
    fitted = lifelines.KaplanMeierFitter().fit(time, reached)
    bounds = fitted.confidence_interval_.to_numpy()
    at = fitted.survival_function_.index.to_numpy()
    assert (median.low, median.high) == tuple(at[np.argmax(bounds[:, side] <= 0.5)] for side in (0, 1))


def test_not_reached_stays_infinite() -> None:
    none = kaplan_meier([5, 5, 5], [False, False, False])
    assert none.median.value == INF and (none.survival == 1).all() and (none.low == 1).all()
    assert median_time([5, 5, 5], [INF] * 3).above == 5 and median_time([5, 5, 5], [INF] * 3).to == INF


# Interval-censored.


@settings(deadline=None, max_examples=15)
@given(SEEDS)
def test_the_estimate_agrees_with_lifelines(seed: int) -> None:
    """Their expectation-maximisation converges slowly; ours must reach at least their likelihood."""
    above, to = interval_censored(seed, 15)
    curve = turnbull(above, to)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lifelines.KaplanMeierFitter().fit_interval_censoring(above, to, tol=1e-9).survival_function_
    times = theirs.index.to_numpy()
    lower = np.array([1 - curve.mass[curve.to <= time].sum() for time in times])
    finite = np.isfinite(times)
    assert lower[finite] == pytest.approx(theirs["NPMLE_estimate_lower"].to_numpy()[finite], abs=2e-3)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 60))
def test_no_other_distribution_is_more_likely(seed: int, count: int) -> None:
    """The directional derivative of the log-likelihood towards any single interval is not positive."""
    above, to = interval_censored(seed, count)
    random = np.random.default_rng(seed)
    curve = turnbull(above, to)
    share = contains(curve, above, to) @ curve.mass
    assert (share > 0).all() and curve.mass.sum() == pytest.approx(1)
    for point in np.concatenate([random.uniform(0, 5000, 200), above, to[np.isfinite(to)]]):
        assert (((above < point) & (point <= to)) / share).mean() <= 1 + 1e-9


@pytest.mark.parametrize("seed", [102, 219, 2023, 2045])
def test_rounding_of_the_likelihood_does_not_stop_the_estimate(seed: int) -> None:
    """These samples were not found in 500 iterations; lifelines has the same estimate of them."""
    above, to = interval_censored(seed, 20)
    curve = turnbull(above, to)
    share = contains(curve, above, to) @ curve.mass
    assert (contains(curve, above, to) / share[:, None]).mean(0) == pytest.approx(1, abs=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lifelines.KaplanMeierFitter().fit_interval_censoring(above, to, tol=1e-9).survival_function_
    times = theirs.index.to_numpy()
    ours = np.array([1 - curve.mass[curve.to <= time].sum() for time in times])
    finite = np.isfinite(times)
    assert ours[finite] == pytest.approx(theirs["NPMLE_estimate_lower"].to_numpy()[finite], abs=2e-3)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 30))
def test_coarse_intervals_with_many_ties_have_an_estimate(seed: int, count: int) -> None:
    """Whole numbers, exact times and censored ones: the largest derivative is that of a maximum."""
    random = np.random.default_rng(seed)
    above = random.integers(0, 12, count).astype(float)
    to = np.where(random.random(count) < 0.3, INF, above + random.integers(0, 6, count))
    curve = turnbull(above, to)
    inside = contains(curve, above, to)
    assert (inside / (inside @ curve.mass)[:, None]).mean(0).max() <= 1 + 1e-9


@settings(deadline=None)
@given(SEEDS)
def test_right_censored_data_give_the_kaplan_meier_curve(seed: int) -> None:
    time, reached = right_censored(seed)
    curve = turnbull(time, np.where(reached, time, INF))
    expected = kaplan_meier(time, reached)
    for at, share in zip(expected.time, expected.survival, strict=True):
        assert curve.mass[curve.to > at].sum() == pytest.approx(share, abs=1e-7)


def test_exact_times_and_adjacent_intervals_do_not_share_an_end() -> None:
    """(1, 2] and (2, 3] are apart, the exact time 2 is in the first of them."""
    curve = turnbull([1, 2], [2, 3])
    assert list(curve.to) == [2, 3] and curve.mass == pytest.approx([0.5, 0.5])
    curve = turnbull([1, 2, 2], [2, 2, 3])
    assert list(zip(curve.above, curve.to, strict=True)) == [(2, 2), (2, 3)]
    assert curve.mass == pytest.approx([2 / 3, 1 / 3])


def test_a_median_by_hand() -> None:
    """Five seeds: P(all five on one side of the median) = 1/16, so (smallest, largest] has the level 15/16."""
    found = median_time([10, 20, 30, 40, 50], [20, 30, 40, 50, 60])
    assert (found.above, found.to) == (30, 40) and (found.low, found.high) == (10, 60)
    four = median_time([10, 20, 30, 40], [20, 30, 40, 50])
    assert (four.low, four.high) == (0, INF)
    censored = median_time([10, 20, 30, 50, 50], [20, 30, 40, INF, INF])
    assert (censored.above, censored.to) == (30, 40) and censored.high == INF and censored.not_reached == 2


@pytest.mark.parametrize("count", [5, 8, 20])
def test_the_interval_of_a_median_covers_it(count: int) -> None:
    """At least 90% of samples, on a coarse schedule with a horizon that a third of the trials do not reach."""
    random = np.random.default_rng(count)
    schedule = np.geomspace(10, 1700, 30)
    covered = 0
    for _ in range(400):
        above, to = on_a_schedule(np.exp(random.normal(7, 1, count)), schedule)
        covered += median_time(above, to).covers(math.exp(7))
    assert covered / 400 >= 0.88


@pytest.mark.parametrize(("above", "to"), [([2], [1]), ([1, 2], [3]), ([], []), ([math.nan], [1]), ([INF], [INF])])
def test_an_interval_that_is_none_is_refused(above: list[float], to: list[float]) -> None:
    with pytest.raises(ValueError, match="above and to"):
        turnbull(above, to)


# The log-rank test.


def hypergeometric_variance(time: np.ndarray, reached: np.ndarray, group: np.ndarray) -> float:
    total = 0.0
    for at in np.unique(time[reached]):
        risk, first = (time >= at).sum(), ((time >= at) & (group == 0)).sum()
        events = ((time == at) & reached).sum()
        if risk > 1:
            total += events * first / risk * (1 - first / risk) * (risk - events) / (risk - 1)
    return total


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_observed_minus_expected_is_that_of_the_ordinary_test(seed: int) -> None:
    """Its square over the hypergeometric variance is the statistic of scipy and statsmodels."""
    time, reached = right_censored(seed)
    group = np.arange(len(time)) % 2
    excess = logrank(time, np.where(reached, time, INF), group, permutations=10).excess
    statistic = excess[0] ** 2 / hypergeometric_variance(time, reached, group)
    assert excess[0] + excess[1] == pytest.approx(0, abs=1e-6)
    assert statistic == pytest.approx(survfunc.survdiff(time, reached, group)[0], rel=1e-6, abs=1e-6)
    samples = [
        stats.CensoredData(uncensored=time[reached & (group == g)], right=time[~reached & (group == g)]) for g in (0, 1)
    ]
    assert statistic == pytest.approx(stats.logrank(*samples).statistic ** 2, rel=1e-6, abs=1e-6)


def test_the_permutation_agrees_with_the_ordinary_test_in_a_large_sample() -> None:
    random = np.random.default_rng(0)
    group = np.arange(300) % 2
    time = np.exp(random.normal(3, 1, 300) + 0.1 * group)
    reached = time < 40
    time = np.minimum(time, 40)
    found = logrank(time, np.where(reached, time, INF), group)
    assert found.p_value == pytest.approx(survfunc.survdiff(time, reached, group)[1], rel=0.15)
    assert found.excess[0] > 0 and found.groups == (0, 1) and not found.exact


def test_three_of_three_against_none_of_three_is_a_tenth() -> None:
    """As in Fisher's exact test."""
    found = logrank([1, 2, 3, 9, 9, 9], [1, 2, 3, INF, INF, INF], list("aaabbb"))
    assert found.exact and found.p_value == pytest.approx(0.1)
    assert found.p_value == pytest.approx(stats.fisher_exact([[3, 0], [0, 3]]).pvalue)


def test_more_than_two_groups_are_compared() -> None:
    random = np.random.default_rng(1)
    group = np.repeat([0, 1, 2], 12)
    time = np.exp(random.normal(3 + 0.8 * group, 0.6))
    above, to = on_a_schedule(time, np.geomspace(3, 100, 20))
    assert logrank(above, to, group).p_value < 0.01
    assert logrank(above, to, random.permutation(group)).p_value > 0.05


def test_a_level_of_the_test_is_its_rate_of_false_positives() -> None:
    random = np.random.default_rng(2)
    schedule = np.geomspace(3, 60, 12)
    values = []
    for _ in range(300):
        above, to = on_a_schedule(np.exp(random.normal(3, 1, 10)), schedule)
        values.append(logrank(above, to, np.arange(10) % 2).p_value)
    assert 0.01 <= np.mean(np.array(values) <= 0.05) <= 0.08
    assert 0.06 <= np.mean(np.array(values) <= 0.1) <= 0.14


@settings(deadline=None)
@given(SEEDS)
def test_scores_add_up_to_nothing_and_depend_on_the_order_alone(seed: int) -> None:
    above, to = interval_censored(seed, 20)
    values = scores(above, to)
    assert values.sum() == pytest.approx(0, abs=1e-6)
    assert scores(above**3, to**3) == pytest.approx(values, abs=1e-6)


def test_scores_of_data_without_an_event_are_zero() -> None:
    found = logrank([5.0] * 6, [INF] * 6, [0, 0, 0, 1, 1, 1])
    assert found.p_value == 1 and found.statistic == 0 and found.excess == pytest.approx((0, 0))


# Pairs.


def test_pairs_by_hand() -> None:
    """All four seeds are faster under A: 2 of the 16 exchanges are as extreme."""
    a, b = np.array([10.0, 20, 30, 40]), np.array([40.0, 80, 120, 160])
    found = paired(a, a, b, b)
    assert found.exact and found.p_value == pytest.approx(2 / 16) and found.excess > 0
    assert found.ratio.above == found.ratio.to == 0.25
    assert paired(b, b, a, a).excess == pytest.approx(-found.excess)


def test_a_difference_within_seeds_is_found_where_seeds_differ_more() -> None:
    random = np.random.default_rng(5)
    seed_effect = random.normal(7, 1.5, 12)
    a, b = np.exp(seed_effect + random.normal(0, 0.1, (2, 12)) + [[0.0], [0.4]])
    schedule = np.geomspace(10, 20_000, 100)
    (above_a, to_a), (above_b, to_b) = on_a_schedule(a, schedule), on_a_schedule(b, schedule)
    found = paired(above_a, to_a, above_b, to_b)
    assert found.p_value < 0.01 and found.ratio.covers(math.exp(-0.4)) and found.ratio.high < 1
    together: Any = (np.append(above_a, above_b), np.append(to_a, to_b), np.repeat([0, 1], 12))
    assert logrank(*together).p_value > 0.2


def test_a_ratio_of_censored_times_is_a_bound() -> None:
    found = paired([5, 5, 5, 5, 5], [INF] * 5, [1, 1, 1, 1, 1], [2, 2, 2, 2, 2])
    assert (found.ratio.above, found.ratio.to) == (2.5, INF) and found.ratio.high == INF
    neither = paired([5, 5], [INF] * 2, [5, 5], [INF] * 2)
    assert neither.p_value == 1 and (neither.ratio.above, neither.ratio.to) == (0, INF)
    with pytest.raises(ValueError, match="one observation of each seed"):
        paired([5], [6], [5, 5], [6, 6])


def test_every_arrangement_is_enumerated_once() -> None:
    time = np.array([1.0, 2, 3, 4, 5, 6])
    group = np.array([0, 1, 0, 1, 1, 0])
    values = scores(time, time)
    observed = abs(values[group == 0].sum())
    sums = [abs(sum(values[list(chosen)])) for chosen in itertools.combinations(range(6), 3)]
    assert logrank(time, time, group).p_value == pytest.approx(np.mean(np.array(sums) >= observed - 1e-9))
