"""Where more data hurts, with family-wise control, and the interpolation threshold."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from orchestrator.analysis.emc import Edge
from orchestrator.analysis.more_data import holm, interpolation_threshold, more_data_hurts

SEEDS = st.integers(0, 2**32 - 1)
SIZES = np.array([100.0, 200.0, 400.0, 800.0, 1600.0])


def errors(random: np.random.Generator, mean: np.ndarray, replicates: int, *, shared: float = 0.02) -> np.ndarray:
    """Replicates with an error of their own at every size, as with common random numbers."""
    level = shared * random.standard_normal((replicates, 1))
    return mean + level + 0.01 * random.standard_normal((replicates, len(mean)))


@hypothesis.settings(max_examples=25)  # of a second each
@given(SEEDS, st.integers(2, 8), st.integers(1, 4))
def test_tests_agree_with_scipy_and_statsmodels(seed: int, replicates: int, settings: int) -> None:
    random = np.random.default_rng(seed)
    given_ = [(SIZES, errors(random, 0.3 + 0.02 * random.random(5), replicates)) for _ in range(settings)]
    found = [doubling for own in more_data_hurts(given_) for doubling in own]
    p_values = []
    for k, doubling in enumerate(found):
        values, n = given_[k // 4][1], k % 4
        own = stats.ttest_rel(values[:, n + 1], values[:, n], alternative="greater")
        p_values.append(own.pvalue)
        assert (doubling.samples, doubling.doubled, doubling.replicates) == (SIZES[n], SIZES[n + 1], replicates)
        assert not doubling.interpolated
        assert doubling.p_value == pytest.approx(own.pvalue, rel=1e-8)
        interval = stats.ttest_rel(values[:, n + 1], values[:, n]).confidence_interval(0.9)
        assert (doubling.difference.low, doubling.difference.high) == pytest.approx(tuple(interval), rel=1e-6)
    rejected, adjusted, *_ = multipletests(p_values, alpha=0.05, method="holm")
    assert [d.adjusted for d in found] == pytest.approx(adjusted.tolist(), rel=1e-8)
    assert [d.hurts() for d in found] == rejected.tolist()


def test_a_family_without_any_harm_has_a_false_claim_in_at_most_5_percent() -> None:
    random = np.random.default_rng(1)
    flat = np.full(5, 0.3)
    false = 0
    for _ in range(300):
        settings = [(SIZES, errors(random, flat, 5)) for _ in range(3)]
        false += any(d.hurts() for own in more_data_hurts(settings) for d in own)
    assert false / 300 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300)


def test_sample_wise_double_descent_is_found_where_it_is() -> None:
    random = np.random.default_rng(2)
    hump = np.array([0.5, 0.4, 0.55, 0.35, 0.3])
    falling = np.array([0.5, 0.45, 0.4, 0.35, 0.3])
    one, other = more_data_hurts([(SIZES, errors(random, hump, 8)), (SIZES, errors(random, falling, 8))])
    assert [d.hurts() for d in one] == [False, True, False, False]
    assert one[1].difference.value == pytest.approx(0.15, abs=0.02)
    assert not any(d.hurts() for d in other)


def test_the_error_at_2n_is_interpolated_in_log_n_where_no_size_stands_for_it() -> None:
    sizes = np.array([100.0, 150.0, 300.0, 402.0])
    line = np.log(sizes)
    (found,) = more_data_hurts([(sizes, np.stack([line, line + 1, line - 2]))])
    assert [(d.samples, d.doubled, d.interpolated) for d in found] == [
        (100, 200, True),
        (150, 300, False),
    ]
    for doubling in found:
        assert doubling.difference.value == pytest.approx(math.log(doubling.doubled / doubling.samples))
    (near,) = more_data_hurts([([200.0, 402.0], [[1.0, 2.0], [1.0, 2.5]])])
    assert near[0].doubled == 402 and not near[0].interpolated, "within 2% of 2n"


def test_one_replicate_is_no_test_and_missing_replicates_are_left_out() -> None:
    one, three = more_data_hurts([([1.0, 2.0], [[0.1, 0.9]]), ([1.0, 2.0], [[1, 2], [1, 3], [np.nan, 9], [1, 4.0]])])
    assert math.isnan(one[0].p_value) and math.isnan(one[0].adjusted) and not one[0].hurts()
    assert one[0].difference.low == -np.inf and one[0].replicates == 1
    assert three[0].replicates == 3 and three[0].difference.value == 2
    assert three[0].adjusted == three[0].p_value, "what was not tested is not in the family"


def test_differences_without_any_spread_are_certain() -> None:
    same = np.array([[0.2, 0.5, 0.3]] * 4)
    (found,) = more_data_hurts([([1.0, 2.0, 4.0], same)])
    assert [d.hurts() for d in found] == [True, False]


@pytest.mark.parametrize(
    ("sizes", "values"), [([0.0, 1.0], [[1, 2]]), ([2.0, 1.0], [[1, 2]]), ([1.0, 2.0], [[1, 2, 3]])]
)
def test_sizes_that_are_none_are_refused(sizes: list[float], values: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"samples|values"):
        more_data_hurts([(sizes, values)])


@given(st.lists(st.floats(0, 1), max_size=20))
def test_adjusted_p_values_keep_their_order_and_are_never_smaller(p_values: list[float]) -> None:
    raw = np.array(p_values, dtype=np.float64)
    adjusted = holm(raw)
    assert (adjusted >= raw).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(raw, kind="stable")]) >= 0).all()


# The interpolation threshold.


def test_the_threshold_is_where_the_error_crosses_epsilon_in_log_size() -> None:
    error = np.array([[0.30, 0.21, 0.11, 0.01, 0.0]] * 3)
    found = interpolation_threshold([1, 10, 100, 1000, 10_000], error, epsilon=0.06)
    assert found.edge is Edge.INSIDE and found.monotone
    assert found.samples.value == pytest.approx(10**2.5) and found.largest_fitted == 100
    assert (found.samples.low, found.samples.high) == pytest.approx((10**2.5, 10**2.5)), "replicates that agree"


def test_an_error_of_epsilon_interpolates() -> None:
    """One wrong label in a hundred, with epsilon = 0.01; and no error at all with epsilon = 0."""
    for error, epsilon in ((0.01, 0.01), (0.1, 0.1), (0.0, 0.0)):
        found = interpolation_threshold([1, 2, 4], [[0.5, error, error]] * 3, epsilon=epsilon)
        assert (found.edge, found.largest_fitted) == (Edge.INSIDE, 1) and found.samples.value == pytest.approx(2)


def test_a_size_that_interpolates_below_one_that_does_not_is_named() -> None:
    found = interpolation_threshold([1, 2, 4, 8], [[0.5, 0.0, 0.4, 0.0], [0.5, 0.0, 0.2, 0.0]])
    assert found.not_fitted_below == (2.0,) and not found.monotone
    assert 4 < found.samples.value < 8


@pytest.mark.parametrize(("level", "edge", "bound"), [(0.5, Edge.ABOVE, 8.0), (0.0, Edge.BELOW, 1.0)])
def test_beyond_the_grid_the_threshold_is_a_bound(level: float, edge: Edge, bound: float) -> None:
    found = interpolation_threshold([1, 2, 4, 8], np.full((3, 4), level))
    assert found.edge is edge and found.samples.value == bound
    assert found.samples.high == np.inf if edge is Edge.ABOVE else found.samples.low == 0


def test_the_interval_covers_the_true_threshold() -> None:
    """The error is linear in log size, so that interpolation has no bias."""
    size = np.geomspace(10, 1000, 9)
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(100):
        level = 0.01 * random.standard_normal((10, 1))
        error = 0.3 - 0.06 * np.log(size / 10) + level
        truth = 10 * math.exp((0.3 - 0.1) / 0.06)
        covered += interpolation_threshold(size, error, epsilon=0.1, resamples=200).samples.covers(truth)
    assert 80 <= covered <= 96
