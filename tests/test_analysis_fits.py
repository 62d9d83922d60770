"""Scaling laws fitted with censoring, many starts and bootstrap, against scipy, statsmodels and known parameters."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from orchestrator.analysis import fits
from orchestrator.analysis.fits import compare, fit, held_out, observations
from orchestrator.analysis.laws import BROKEN_POWER, CRITICAL, LAWS, POWER, POWER_WITH_FLOOR, TWO_POWERS, Law
from orchestrator.analysis.minimise import minimise

SEEDS = st.integers(0, 2**32 - 1)
WIDTHS = np.repeat(np.geomspace(1e2, 1e5, 10), 4)


def sample(curve: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    return curve * np.exp(sigma * np.random.default_rng(seed).standard_normal(len(curve)))


def censored(time: np.ndarray, horizon: float, *, reports: int = 60) -> tuple[np.ndarray, np.ndarray]:
    schedule = np.append(0, np.geomspace(min(time.min() / 2, horizon / 2), horizon, reports))
    place = np.searchsorted(schedule, time)
    return schedule[place - 1], np.append(schedule, math.inf)[place]


def exact(law: Law, x: np.ndarray, natural: dict[str, float]) -> np.ndarray:
    """The formula itself, evaluated in Python's own words."""
    formula = law.formula.removeprefix("y = ").replace("^", "**").replace("a x", "a*x").replace("a (", "a*(")
    formula = formula.replace("a n", "a*n").replace("b d", "b*d").replace("-c f", "-c*f").replace("b (", "b*(")
    formula = formula.replace("x**-b (", "x**-b * (")
    names: dict[str, Any] = dict(natural)
    names |= {"x": x[:, 0]} if law.columns == 1 else {"n": x[:, 0], "d": x[:, 1]}
    return np.asarray(eval(formula, {}, names))


CASES: list[tuple[Law, np.ndarray, dict[str, float]]] = [
    (POWER, WIDTHS[:, None], {"a": 3.0, "b": 0.5}),
    (POWER_WITH_FLOOR, WIDTHS[:, None], {"a": 3.0, "b": 0.5, "c": 0.02}),
    (CRITICAL, np.linspace(0.3, 0.8, 10)[:, None], {"a": 50.0, "nu": 1.5, "x_c": 0.27}),
    (BROKEN_POWER, np.geomspace(1e2, 1e6, 30)[:, None], {"a": 2.0, "b": 0.1, "c": 0.6, "d": 1e4, "f": 0.3}),
    (
        TWO_POWERS,
        np.stack(np.meshgrid(np.geomspace(1e7, 1e10, 7), np.geomspace(1e9, 1e11, 7)), -1).reshape(-1, 2),
        {"e": 1.8, "a": 480.0, "alpha": 0.35, "b": 2000.0, "beta": 0.37},
    ),
]


@pytest.mark.parametrize(
    ("law", "x", "natural", "loss"),
    [
        pytest.param(*case, loss, id=f"{case[0].name}, {loss}")
        for case in CASES
        for loss in ("normal", "huber")
        # Two thousand starts: once is enough.
        if (case[0], loss) != (TWO_POWERS, "normal")
    ],
)
def test_data_on_a_law_give_its_parameters(law: Law, x: np.ndarray, natural: dict[str, float], loss: Any) -> None:
    y = sample(exact(law, x, natural), 1e-4, 0)
    fitted = fit(law, observations(x if law.columns > 1 else x[:, 0], y), loss=loss, resamples=0)
    assert {name: e.value for name, e in fitted.parameters.items()} == pytest.approx(natural, rel=0.05)
    assert fitted.predict(x)[0] == pytest.approx(exact(law, x, natural), rel=1e-3)


def test_every_law_is_tested() -> None:
    assert {law.name for law, _, _ in CASES} == {law.name for law in LAWS}


@pytest.mark.parametrize(("law", "x", "natural"), CASES, ids=lambda value: getattr(value, "name", ""))
def test_the_jacobian_is_that_of_finite_differences(law: Law, x: np.ndarray, natural: dict[str, float]) -> None:
    origin = float(x[:, 0].min())
    theta = law.starts(x, np.log(exact(law, x, natural)), origin)[:3] + 0.01
    value, jacobian = law.jacobian(theta, x, origin)
    for p in range(theta.shape[1]):
        step = np.zeros(theta.shape[1])
        step[p] = 1e-6
        ahead, behind = (law.jacobian(theta + sign * step, x, origin)[0] for sign in (1, -1))
        assert jacobian[p] == pytest.approx((ahead - behind) / 2e-6, abs=1e-4)
    assert np.isfinite(value).all()


@settings(deadline=None, max_examples=5)
@given(SEEDS)
def test_the_power_law_of_exact_data_is_least_squares(seed: int) -> None:
    y = sample(3 * WIDTHS**-0.5, 0.3, seed)
    fitted = fit(POWER, observations(WIDTHS, y), resamples=0)
    slope, intercept = np.polyfit(np.log(WIDTHS), np.log(y), 1)
    residual = np.log(y) - slope * np.log(WIDTHS) - intercept
    assert fitted.parameters["b"].value == pytest.approx(-slope, rel=1e-4)
    assert fitted.parameters["a"].value == pytest.approx(math.exp(intercept), rel=1e-4)
    assert fitted.scale == pytest.approx(np.sqrt((residual**2).mean()), rel=1e-4)
    assert fitted.log_likelihood == pytest.approx(stats.norm.logpdf(residual, scale=fitted.scale).sum(), abs=1e-6)


@settings(deadline=None, max_examples=5)
@given(SEEDS)
def test_the_huber_loss_is_that_of_scipy(seed: int) -> None:
    y = sample(3 * WIDTHS**-0.5, 0.3, seed)
    fitted = fit(POWER, observations(WIDTHS, y), loss="huber", resamples=0)
    theirs = optimize.least_squares(
        lambda p: np.log(y) - p[0] + p[1] * np.log(WIDTHS), [1, 0.5], loss="huber", f_scale=1e-3, xtol=1e-15, ftol=1e-15
    )
    assert fitted.scale * len(y) <= theirs.cost / 1e-3 * (1 + 1e-6)


def test_the_summed_huber_loss_of_three_parameters_reaches_the_best_of_another_optimiser() -> None:
    n = np.geomspace(1e2, 1e5, 60)
    y = sample(3 * n**-0.5 + 0.02, 0.05, 0)

    def summed(p: np.ndarray) -> float:
        size = np.abs(np.log(y) - np.logaddexp(p[0] - p[1] * np.log(n), p[2]))
        return float(np.where(size < 1e-3, 0.5 * size**2 / 1e-3, size - 5e-4).sum())

    starts = [[1.5, b, c] for b in (0.3, 0.7) for c in (-6.0, -3.0)]
    options = {"maxiter": 5000, "xatol": 1e-10, "fatol": 1e-12}
    best = min(optimize.minimize(summed, p, method="Nelder-Mead", options=options).fun for p in starts)
    assert 60 * fit(POWER_WITH_FLOOR, observations(n, y), loss="huber", resamples=0).scale <= best * (1 + 1e-6)


def test_the_scale_of_the_errors_of_exact_data_has_a_floor() -> None:
    """The search for the minimum may end at any scale below it: the likelihood does not change there."""
    x = np.repeat([1.0, 2.0, 4.0, 8.0], 2)
    problem = fits._Problem(POWER, observations(x, 3 * x**-0.5), "normal")
    for log_scale in (-20.0, -700.0):
        theta = np.array([0.0, 0.5, log_scale])
        assert np.isfinite(problem.metric(theta)).all()
        assert problem.likelihood(theta)[0] == 1e-6


def test_interval_and_right_censored_likelihood_is_that_of_scipy() -> None:
    time = sample(np.full(40, 100.0), 0.5, 1)
    above, to = censored(time, 130, reports=12)
    fitted = fit(POWER, observations(np.repeat([1.0, 1.1], 20), above=above, to=to), resamples=0)
    data = stats.CensoredData(
        right=np.log(above[np.isinf(to)]),
        interval=np.log(np.maximum(np.stack([above, to], 1)[np.isfinite(to)], 1e-3)),
    )

    def minus(theta: np.ndarray) -> float:
        location = theta[0] - theta[1] * np.log(np.repeat([1.0, 1.1], 20))
        low, high = (np.log(np.maximum(above, 1e-300)) - location), (np.log(to) - location)
        return -float(np.log(stats.norm.cdf(high / theta[2]) - stats.norm.cdf(low / theta[2])).sum())

    best = optimize.minimize(minus, [4.5, 0.0, 0.5], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-11})
    assert fitted.log_likelihood == pytest.approx(-best.fun, abs=1e-6)
    assert fitted.scale == pytest.approx(best.x[2], rel=1e-3)
    location, scale = stats.norm.fit(data)
    alone = fit(POWER, observations(np.ones(40) + np.arange(40) * 1e-9, above=above, to=to), resamples=0)
    assert alone.scale == pytest.approx(scale, rel=0.1) and location == pytest.approx(math.log(100), abs=0.3)


def test_dropping_censored_points_would_bias_the_exponent() -> None:
    decay = np.repeat(np.geomspace(0.1, 10, 8), 40)
    time = sample(300 / decay, 0.5, 0)
    above, to = censored(time, 600)
    reached = np.isfinite(to)
    whole = fit(POWER, observations(decay, above=above, to=to), resamples=200)
    rest = fit(POWER, observations(decay[reached], above=above[reached], to=to[reached]), resamples=0)
    assert whole.censored == 320 and whole.parameters["b"].covers(1.0)
    assert not whole.parameters["b"].covers(rest.parameters["b"].value)


def test_a_point_below_the_critical_one_is_not_reached() -> None:
    fraction = np.repeat([0.2, 0.25, 0.3, 0.32, 0.36, 0.4, 0.5, 0.6], 8)
    mean = np.where(fraction > 0.27, 50 * np.maximum(fraction - 0.27, 1e-9) ** -1.5, 1e30)
    above, to = censored(sample(mean, 0.2, 0), 20_000)
    fitted = fit(CRITICAL, observations(fraction, above=above, to=to), resamples=100)
    assert fitted.parameters["x_c"].covers(0.27) and fitted.parameters["nu"].covers(1.5)
    assert fitted.parameters["x_c"].high <= 0.3


def test_intervals_contain_the_estimate_and_are_wider_for_common_seeds() -> None:
    """Seeds that shift a whole curve: resampling trials one by one gives an interval that is too narrow for `a`."""
    random = np.random.default_rng(0)
    replicate = np.tile(np.arange(4), 10)
    x = WIDTHS / np.exp(np.log(WIDTHS).mean())
    y = 3 * x**-0.5 * np.exp(0.3 * random.standard_normal(4)[replicate] + 0.02 * random.standard_normal(40))
    apart, together = (fit(POWER, observations(x, y), units=units).parameters["a"] for units in (None, replicate))
    assert together.low <= together.value <= together.high
    assert math.log(together.high / together.low) > 1.5 * math.log(apart.high / apart.low)


def test_a_setting_with_one_observation_is_resampled_among_the_others() -> None:
    n = np.geomspace(1e2, 1e5, 20)
    fitted = fit(POWER, observations(n, sample(3 * n**-0.5, 0.1, 0)))
    assert fitted.parameters["b"].low < fitted.parameters["b"].value < fitted.parameters["b"].high
    low, high = fitted.predict(n)[1:]
    assert (low < 3 * n**-0.5 * 1.2).all() and (high > 3 * n**-0.5 / 1.2).all()


def test_models_are_compared_by_aicc_and_by_held_out_settings() -> None:
    widths = WIDTHS[::4].repeat(2)
    data = observations(widths, sample(3 * widths**-0.5 + 0.03, 0.02, 0))
    plain, floor = (fit(law, data, resamples=0) for law in (POWER, POWER_WITH_FLOOR))
    ranked = compare([plain, floor])
    assert [c.law for c in ranked] == ["power law with a floor", "power law"]
    assert ranked[0].difference == 0 and ranked[1].difference > 10 and ranked[0].weight > 0.99
    assert held_out(POWER_WITH_FLOOR, data).mean() < held_out(POWER, data).mean()
    assert plain.aicc == pytest.approx(6 - 2 * plain.log_likelihood + 24 / 16)
    with pytest.raises(ValueError, match="same loss"):
        compare([plain, fit(POWER, data, loss="huber", resamples=0)])


@pytest.mark.filterwarnings("error")
def test_models_with_too_few_observations_for_aicc_are_not_compared() -> None:
    data = observations([1.0, 2.0, 4.0, 8.0], [1.0, 0.8, 0.5, 0.4])
    ranked = compare([fit(law, data, resamples=0) for law in (POWER, POWER_WITH_FLOOR)])
    assert [c.law for c in ranked] == ["power law", "power law with a floor"]
    assert all(math.isnan(c.difference) and math.isnan(c.weight) for c in ranked)


@pytest.mark.parametrize(
    "arguments",
    [
        {"y": [1, 2, -1]},
        {"y": [1, 2]},
        {},
        {"above": [0, 1, 1], "to": [math.inf, 2, 2]},
        {"above": [1, 1, 1], "to": [math.inf] * 3},
    ],
)
def test_observations_that_say_nothing_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"x|y|above"):
        observations([1.0, 2.0, 3.0], **arguments)


def test_a_fit_states_what_it_needs() -> None:
    with pytest.raises(ValueError, match="at least 3 distinct"):
        fit(CRITICAL, observations([1.0, 1.0, 2.0, 2.0], [4.0, 4.0, 2.0, 2.0]))
    with pytest.raises(ValueError, match="huber"):
        fit(POWER, observations([1.0, 2.0], above=[1.0, 1.0], to=[2.0, 2.0]), loss="huber")
    with pytest.raises(ValueError, match="2 column"):
        fit(TWO_POWERS, observations([1.0, 2.0], [1.0, 2.0]))


def test_many_problems_are_minimised_at_once() -> None:
    """Rosenbrock's function from a grid of starts, and one parabola of each scale."""

    def rosenbrock(p: np.ndarray, problems: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value = np.array([optimize.rosen(row) for row in p])
        return value, np.array([optimize.rosen_der(row) for row in p])

    starts = np.array([[x, y] for x in (-1.5, 0.0, 2.0) for y in (-1.0, 2.0)])
    ends = minimise(rosenbrock, starts, tolerance=1e-12)
    assert ends.converged.all() and ends.theta == pytest.approx(np.ones((6, 2)), abs=1e-4)
    scales = np.geomspace(1e-3, 1e3, 7)
    ends = minimise(lambda p, k: ((scales[k] * (p[:, 0] - 3) ** 2), 2 * scales[k, None] * (p - 3)), np.zeros((7, 1)))
    assert ends.theta[1:, 0] == pytest.approx(np.full(6, 3.0), abs=1e-2)


@settings(deadline=None)
@given(st.floats(-30, 30), st.floats(0.01, 20))
def test_the_probability_of_an_interval_is_accurate_in_both_tails(low: float, width: float) -> None:
    low_, high = np.array([[low]]), np.array([[low + width]])
    loss, shift, by_scale = fits._interval(low_, high)
    edge = max(low, -low - width)
    expected = -(stats.norm.logsf(edge) + np.log1p(-stats.norm.sf(edge + width) / stats.norm.sf(edge)))
    if edge > 0:
        assert loss[0, 0] == pytest.approx(expected, rel=1e-9)
    step = 1e-6 * max(1.0, width)
    ahead, behind = (fits._interval(low_ - d, high - d)[0][0, 0] for d in (step, -step))
    assert shift[0, 0] == pytest.approx((ahead - behind) / (2 * step), rel=1e-3, abs=1e-3)
    grown, shrunk = (fits._interval(low_ / s, high / s)[0][0, 0] for s in (1 + 1e-6, 1 - 1e-6))
    assert by_scale[0, 0] == pytest.approx((grown - shrunk) / 2e-6, rel=1e-3, abs=1e-2)
