"""Critical points of shares and finite-size scaling, against statsmodels, a plain loop and known parameters."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.analysis.critical import (
    Link,
    collapse,
    quality,
    scaled_threshold,
    share_errors,
    share_interval,
    threshold,
)

GLM = pytest.importorskip("statsmodels.genmod.generalized_linear_model", reason="statsmodels is a test dependency").GLM
families = pytest.importorskip("statsmodels.genmod.families")

SEEDS = st.integers(0, 2**32 - 1)
FRACTIONS = np.linspace(0.2, 0.5, 7)
TRIALS = np.full(7, 20)
SIZES = np.repeat([31, 59, 97, 151], 9)
GRID = np.tile(np.linspace(0.15, 0.55, 9), 4)


def counts(seed: int, x: np.ndarray, *, critical: float, scale: float, trials: np.ndarray) -> np.ndarray:
    return np.random.default_rng(seed).binomial(trials, 1 / (1 + np.exp(-(x - critical) / scale)))


def scaled_counts(seed: int, trials: int, *, rising: bool = True) -> np.ndarray:
    z = (GRID - 0.33) * 2 * SIZES**0.5
    return np.random.default_rng(seed).binomial(trials, 1 / (1 + np.exp(-z if rising else z)))


@settings(deadline=None, max_examples=10)
@given(SEEDS, st.sampled_from(["logistic", "probit"]))
@example(1037072, "probit")
def test_the_threshold_is_that_of_a_generalised_linear_model(seed: int, link: Link) -> None:
    reached = counts(seed, FRACTIONS, critical=0.33, scale=0.05, trials=TRIALS)
    links = families.links
    family = families.Binomial(links.Logit() if link == "logistic" else links.Probit())
    design = np.stack([np.ones(7), FRACTIONS], 1)
    theirs = GLM(np.stack([reached, TRIALS - reached], 1), design, family=family).fit(tol=1e-12)
    ours = threshold(FRACTIONS, reached, TRIALS, link=link)
    quartiles = 2 * (math.log(3) if link == "logistic" else 0.6744897501960817)
    assert ours.critical.value == pytest.approx(-theirs.params[0] / theirs.params[1], abs=1e-6)
    assert ours.width.value == pytest.approx(quartiles / theirs.params[1], rel=1e-4)


def test_the_ends_of_the_interval_are_where_the_likelihood_has_fallen() -> None:
    """Twice the log-likelihood, maximised over the slope by another optimiser, falls by the chi-squared quantile."""
    reached = counts(0, FRACTIONS, critical=0.33, scale=0.05, trials=TRIALS)
    found = threshold(FRACTIONS, reached, TRIALS)
    slopes = np.geomspace(0.1, 1e4, 200_001)
    for end in (found.critical.low, found.critical.high):
        z = slopes[:, None] * (FRACTIONS - end)
        profile = -((reached * np.logaddexp(0, -z) + (TRIALS - reached) * np.logaddexp(0, z)).sum(1)).min()
        assert 2 * (found.log_likelihood - profile) == pytest.approx(2.7055, abs=2e-3)


@pytest.mark.parametrize("link", ["logistic", "probit"])
@pytest.mark.parametrize("rising", [True, False])
def test_the_fitted_share_is_a_half_at_the_critical_point_and_three_quarters_half_a_width_on(
    link: Link, rising: bool
) -> None:
    reached = counts(0, FRACTIONS, critical=0.33, scale=0.05, trials=TRIALS)
    found = threshold(FRACTIONS, reached if rising else TRIALS - reached, TRIALS, rising=rising, link=link)
    at = found.critical.value + found.width.value * np.array([-0.5, 0, 0.5])
    assert found.share(at) == pytest.approx([0.25, 0.5, 0.75] if rising else [0.75, 0.5, 0.25])
    log_share, log_rest = np.log(found.share(FRACTIONS)), np.log1p(-found.share(FRACTIONS))
    yes = reached if rising else TRIALS - reached
    assert float((yes * log_share + (TRIALS - yes) * log_rest).sum()) == pytest.approx(found.log_likelihood)


@pytest.mark.parametrize("rising", [True, False])
def test_the_fitted_shares_of_sizes_are_those_of_the_law(rising: bool) -> None:
    found = scaled_threshold(SIZES, GRID, scaled_counts(0, 400, rising=rising), np.full(len(GRID), 400), rising=rising)
    for size in (31, 151):
        own = found.share(GRID[:9], size)
        z = (GRID[:9] - 0.33) * 2 * size**0.5
        assert own == pytest.approx(1 / (1 + np.exp(-z if rising else z)), abs=0.03)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.data(), st.sampled_from([0.8, 0.9, 0.95]))
def test_the_interval_of_a_share_is_wilsons(trials: int, data: st.DataObject, level: float) -> None:
    from statsmodels.stats.proportion import proportion_confint

    reached = data.draw(st.integers(0, trials))
    theirs = proportion_confint(reached, trials, alpha=1 - level, method="wilson")
    ours = share_interval([reached], [trials], level=level)
    assert [float(end[0]) for end in ours] == pytest.approx(theirs, abs=1e-12)


def test_seeds_that_all_change_at_one_place_give_a_step() -> None:
    """Complete separation: a Wald interval does not exist, the profile likelihood's does."""
    found = threshold([0.2, 0.3, 0.4, 0.5], [0, 0, 5, 5], [5] * 4)
    assert found.width.value == 0 == found.width.low and 0 < found.width.high < 0.1
    assert found.share([0.2, found.critical.value, 0.5]).tolist() == [0, 0.5, 1]
    assert found.critical.low == pytest.approx(0.3, abs=1e-3) and found.critical.high == pytest.approx(0.4, abs=1e-3)


def test_a_transition_outside_the_settings_is_only_bounded() -> None:
    every = threshold([0.2, 0.3, 0.4], [5, 5, 5], [5] * 3)
    assert every.critical.value == -math.inf == every.critical.low and every.critical.high < 0.21
    none = threshold([0.2, 0.3, 0.4], [0, 0, 0], [5] * 3)
    assert none.critical.value == math.inf == none.critical.high and none.critical.low > 0.39


@pytest.mark.parametrize("link", ["logistic", "probit"])
@pytest.mark.parametrize("rising", [True, False])
@pytest.mark.parametrize("x", [np.arange(-1.0, 6.0), np.log([0.3, 0.45, 0.6]), FRACTIONS])
def test_where_all_or_none_reach_the_event_no_number_is_the_critical_point(
    x: np.ndarray, rising: bool, link: Link
) -> None:
    three = np.full(len(x), 3)
    every, none = (threshold(x, reached, three, rising=rising, link=link) for reached in (three, 0 * three))
    below, above = (every, none) if rising else (none, every)
    assert below.critical.value == -math.inf and above.critical.value == math.inf
    assert below.critical.high < x.min() + 1e-3 and above.critical.low > x.max() - 1e-3


@settings(deadline=None, max_examples=10)
@given(SEEDS)
def test_a_falling_share_is_the_mirror_image(seed: int) -> None:
    reached = counts(seed, FRACTIONS, critical=0.33, scale=0.05, trials=TRIALS)
    up, down = threshold(FRACTIONS, reached, TRIALS), threshold(-FRACTIONS, reached, TRIALS, rising=False)
    assert down.critical.value == pytest.approx(-up.critical.value, abs=1e-6)
    assert (down.critical.low, down.critical.high) == pytest.approx((-up.critical.high, -up.critical.low), abs=1e-6)
    assert down.width.value == pytest.approx(up.width.value, rel=1e-4)


@pytest.mark.parametrize(
    ("x", "reached", "trials"),
    [([1], [1], [2]), ([1, 2], [3, 1], [2, 2]), ([1, 2], [1], [2]), ([1, 2], [0, 0], [0, 1])],
)
def test_shares_that_are_none_are_refused(x: list[float], reached: list[int], trials: list[int]) -> None:
    with pytest.raises(ValueError, match="reached"):
        threshold(x, reached, trials)


# Finite-size scaling.


def naive_quality(size: np.ndarray, x: np.ndarray, y: np.ndarray, error: np.ndarray) -> float:
    """The definition, point by point, with numpy's weighted line."""
    terms = []
    for i in range(len(x)):
        near = []
        for other in np.unique(size[size != size[i]]):
            members = sorted(np.flatnonzero(size == other), key=lambda j: x[j])
            for left, right in itertools.pairwise(members):
                if x[left] <= x[i] < x[right]:
                    near += [left, right]
        if near:
            design = np.stack([np.ones(len(near)), x[near]], 1) / error[near][:, None]
            covariance = np.linalg.inv(design.T @ design)
            line = covariance @ design.T @ (y[near] / error[near])
            at = np.array([1, x[i]])
            terms.append((y[i] - at @ line) ** 2 / (error[i] ** 2 + at @ covariance @ at))
    return float(np.mean(terms))


@settings(deadline=None, max_examples=10)
@given(SEEDS)
def test_the_quality_is_that_of_its_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    reached = scaled_counts(seed, 20)
    x = (GRID - 0.33) * SIZES ** random.uniform(0.2, 0.8)
    y, error = reached / 20, share_errors(reached, 20)
    assert quality(SIZES, x, y, error)[0] == pytest.approx(naive_quality(SIZES, x, y, error), rel=1e-9)


def test_a_collapse_recovers_its_exponents_and_has_a_quality_near_one() -> None:
    reached = scaled_counts(3, 200)
    found = collapse(SIZES, GRID, reached / 200, share_errors(reached, 200), resamples=30)
    assert found.critical.value == pytest.approx(0.33, abs=0.015)
    assert found.inverse_nu.value == pytest.approx(0.5, abs=0.1)
    assert 0.3 < found.quality < 2.5 and found.overlap > 0.8
    assert found.critical.low < found.critical.high and found.zeta_over_nu.value == 0


def test_curves_that_do_not_fall_on_one_have_a_poor_quality() -> None:
    y = np.where(SIZES > 60, 0.2, 0.8) + 0.1 * GRID
    found = collapse(SIZES, GRID, y, np.full(36, 0.02), resamples=0)
    assert found.quality > 10 and math.isnan(found.critical.low)


def test_the_height_of_a_peak_is_scaled_too() -> None:
    size = np.repeat([16.0, 32, 64, 128], 15)
    x = np.tile(np.linspace(0.5, 1.5, 15), 4)
    y = size**0.4 * np.exp(-0.5 * ((x - 1) * size**0.3) ** 2)
    found = collapse(size, x, y, 0.03 * size**0.4, fit_height=True, resamples=0)
    assert found.critical.value == pytest.approx(1, abs=0.02)
    assert found.inverse_nu.value == pytest.approx(0.3, abs=0.03)
    assert found.zeta_over_nu.value == pytest.approx(-0.4, abs=0.03)


@pytest.mark.parametrize("rising", [True, False])
def test_the_scaled_threshold_recovers_its_parameters(rising: bool) -> None:
    reached = scaled_counts(0, 20, rising=rising)
    found = scaled_threshold(SIZES, GRID, reached, np.full(36, 20), rising=rising, resamples=200)
    assert found.critical.covers(0.33) and found.inverse_nu.covers(0.5)
    assert found.width.covers(math.log(3) / math.sqrt(np.exp(np.log(SIZES).mean())))
    assert 0.3 < found.quality < 2.5


@pytest.mark.parametrize("rising", [True, False])
def test_a_critical_point_that_moves_with_the_size_has_an_exponent(rising: bool) -> None:
    """f_c = 0.33 (L / L0)^-0.4, in the logarithm of f; one critical point for all sizes does not describe it."""
    x, log_size = np.log(GRID), np.log(SIZES) - np.log(SIZES).mean()
    z = (x - math.log(0.33) + 0.4 * log_size) * 8 * np.exp(0.5 * log_size)
    reached = np.random.default_rng(1).binomial(20, 1 / (1 + np.exp(-z if rising else z)))
    found = scaled_threshold(SIZES, x, reached, np.full(36, 20), rising=rising, moves=True, resamples=200)
    # Within about three standard deviations, of 60 such sets.
    assert found.shift.value == pytest.approx(0.4, abs=0.09)
    assert found.critical.value == pytest.approx(math.log(0.33), abs=0.05)
    assert found.inverse_nu.value == pytest.approx(0.5, abs=0.4)
    assert 0.05 < found.shift.high - found.shift.low < 0.2 and found.quality < 2.5
    fixed = scaled_threshold(SIZES, x, reached, np.full(36, 20), rising=rising, resamples=10)
    assert fixed.shift.value == fixed.shift.low == fixed.shift.high == 0 and fixed.quality > 2 * found.quality


def test_one_size_has_no_scaling() -> None:
    with pytest.raises(ValueError, match="two sizes"):
        collapse([31, 31], [0.1, 0.2], [0, 1], [0.1, 0.1])
    with pytest.raises(ValueError, match="two positive sizes"):
        scaled_threshold([31, 31], [0.1, 0.2], [0, 1], [1, 1])
    with pytest.raises(ValueError, match="neither none nor all"):
        scaled_threshold([31, 59], [0.1, 0.2], [0, 0], [1, 1])
