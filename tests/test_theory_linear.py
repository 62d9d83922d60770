"""Closed forms of linear models: limits, plain loops, and values outside their domain."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jobs.theory import descent, equivalent, minimum_norm, ridge_grokking
from jobs.theory.domain import DomainError

sizes = st.integers(1, 12)
seeds = st.integers(0, 1 << 30)


@given(gamma=st.floats(0.05, 20), signal=st.floats(0, 10), noise=st.floats(0, 10))
def test_hastie_is_the_limit_of_the_exact_risk(gamma: float, signal: float, noise: float) -> None:
    assume(abs(gamma - 1) > 0.02)
    n = 10**7
    p = round(gamma * n)
    limit = minimum_norm.hastie_excess_risk(p / n, signal=signal, noise_variance=noise)
    exact = minimum_norm.belkin_hsu_xu_risk(n, p, used=signal, unused=0.0, noise_variance=noise) - noise
    assert float(limit) == pytest.approx(float(exact), rel=1e-3, abs=1e-9)


def test_the_risk_is_infinite_at_the_threshold_where_anything_is_noise_and_only_there() -> None:
    risk = minimum_norm.belkin_hsu_xu_risk(20, np.array([18, 19, 20, 21, 22]), used=1.0, unused=0.5, noise_variance=0.0)
    np.testing.assert_array_equal(np.isinf(risk), [False, True, True, True, False])
    clean = minimum_norm.belkin_hsu_xu_risk(20, np.array([10, 20, 21, 40]), used=1.0, unused=0.0, noise_variance=0.0)
    np.testing.assert_allclose(clean, [0, 0, 1 - 20 / 21, 0.5], atol=1e-15)
    assert minimum_norm.hastie_excess_risk(1.0, signal=1.0, noise_variance=0.1) == np.inf
    assert minimum_norm.belkin_hsu_xu_risk(9, 0, used=0.0, unused=2.0, noise_variance=1.0) == 3.0


def test_without_examples_to_spare_the_effective_parameters_are_at_least_those_of_the_model() -> None:
    p = np.arange(1, 48)
    assert (minimum_norm.effective_parameters(50, p) >= p).all()
    # Past the threshold a larger model has fewer.
    assert (np.diff(minimum_norm.effective_parameters(50, np.arange(52, 200))) < 0).all()


def test_the_mean_of_all_targets_has_one_effective_parameter() -> None:
    n = 7
    assert minimum_norm.smoother_effective_parameters(np.full((5, n), 1 / n)) == pytest.approx(1.0)
    assert minimum_norm.smoother_effective_parameters(np.eye(n)) == pytest.approx(n)


@pytest.mark.parametrize(
    ("call", "symbol"),
    [
        (lambda: minimum_norm.hastie_excess_risk(0.0, signal=1.0, noise_variance=1.0), "gamma"),
        (lambda: minimum_norm.hastie_excess_risk(0.5, signal=-1.0, noise_variance=1.0), "signal"),
        (lambda: minimum_norm.hastie_excess_risk(0.5, signal=1.0, noise_variance=np.nan), "noise_variance"),
        (lambda: minimum_norm.belkin_hsu_xu_risk(0, 3, used=1, unused=0, noise_variance=0), "n"),
        (lambda: minimum_norm.belkin_hsu_xu_risk(5, [3, -1], used=1, unused=0, noise_variance=0), "p"),
        (lambda: minimum_norm.effective_parameters(5, 0), "p"),
        (lambda: minimum_norm.smoother_effective_parameters(np.zeros((0, 3))), "inputs and examples"),
        (
            lambda: descent.expected_excess_risk(np.ones(3), [1], teacher=1.0, learning_rate=0.1, noise_variance=1.0),
            "x",
        ),
        (
            lambda: descent.expected_excess_risk(np.eye(3), [-1], teacher=1.0, learning_rate=0.1, noise_variance=1.0),
            "steps",
        ),
        (
            lambda: descent.expected_excess_risk(np.eye(3), [1], teacher=1.0, learning_rate=0.0, noise_variance=1.0),
            "learning_rate",
        ),
        (lambda: ridge_grokking.modes_of(np.eye(3), teacher=np.zeros(3), start=np.ones(3)), "teacher"),
        (lambda: ridge_grokking.modes_of(np.eye(3), teacher=np.ones(2), start=np.ones(3)), "teacher and start"),
        (
            lambda: ridge_grokking.generalisation_steps(1.0, test_level=0.2, learning_rate=0.1, weight_decay=0.0),
            "weight_decay",
        ),
    ],
)
def test_outside_its_domain_a_formula_says_which_symbol_breaks_which_rule(call: Any, symbol: str) -> None:
    with pytest.raises(DomainError) as caught:
        call()
    assert caught.value.symbol == symbol and "must" in str(caught.value)


# Gradient descent, against a loop of a few lines.


def plain_descent(
    x: np.ndarray, y: np.ndarray, start: np.ndarray, *, steps: int, learning_rate: float, weight_decay: float
) -> list[np.ndarray]:
    """theta_0 .. theta_steps; `y` and `start` may be (., columns)."""
    course = [start.copy()]
    for _ in range(steps):
        theta = course[-1]
        course.append(theta - learning_rate * (x.T @ (x @ theta - y) / len(x) + weight_decay * theta))
    return course


@given(n=sizes, p=sizes, seed=seeds, decay=st.sampled_from([0.0, 0.1]), start=st.sampled_from([0.0, 2.0]))
@settings(max_examples=40)
def test_the_epoch_wise_risk_is_that_of_a_plain_loop(n: int, p: int, seed: int, decay: float, start: float) -> None:
    """Bias: the loop without noise. Variance: the loop of the matrix that maps the noise to the coefficients."""
    random = np.random.default_rng(seed)
    x, teacher, theta_0 = random.standard_normal((n, p)), random.standard_normal(p), start * random.standard_normal(p)
    variances, noise = random.uniform(0.1, 2, p), 1.7
    common = {"learning_rate": 0.05, "weight_decay": decay}
    clean = plain_descent(x, x @ teacher, theta_0, steps=60, **common)
    maps = plain_descent(x, np.eye(n), np.zeros((p, n)), steps=60, **common)
    risk = descent.expected_excess_risk(
        x, np.arange(61), teacher=teacher, noise_variance=noise, variances=variances, start=theta_0, **common
    )
    bias = [(variances * (theta - teacher) ** 2).sum() for theta in clean]
    variance = [noise * (variances[:, None] * w**2).sum() for w in maps]
    np.testing.assert_allclose(risk.bias, bias, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(risk.variance, variance, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(risk.total, np.add(bias, variance), rtol=1e-8, atol=1e-10)


@given(n=sizes, p=st.integers(2, 12), seed=seeds, decay=st.sampled_from([0.0, 1e-3, 0.3]), rows=st.booleans())
@settings(max_examples=40)
def test_the_grokking_losses_and_crossings_are_those_of_a_plain_loop(
    n: int, p: int, seed: int, decay: float, rows: bool
) -> None:
    random = np.random.default_rng(seed)
    x, teacher, start = random.standard_normal((n, p)), random.standard_normal(p), 3 * random.standard_normal(p)
    if rows:
        teacher = np.linalg.pinv(x) @ x @ teacher
    horizon, rate = 700, 0.02
    course = np.array(plain_descent(x, x @ teacher, start, steps=horizon, learning_rate=rate, weight_decay=decay))
    train = (((course - teacher) @ x.T) ** 2).sum(1) / ((x @ teacher) ** 2).sum()
    test = ((course - teacher) ** 2).sum(1) / (teacher**2).sum()
    modes = ridge_grokking.modes_of(x, teacher=teacher, start=start)
    got = ridge_grokking.losses(modes, np.arange(horizon + 1), learning_rate=rate, weight_decay=decay)
    np.testing.assert_allclose(got[0], train, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(got[1], test, rtol=1e-6, atol=1e-9)
    levels = 0.05, 0.4
    crossed = ridge_grokking.crossing_steps(
        modes, learning_rate=rate, weight_decay=decay, train_level=levels[0], test_level=levels[1], horizon=horizon
    )
    for step, curve, level in ((crossed.train, train, levels[0]), (crossed.test, test, levels[1])):
        # Within rounding of the level either answer is right.
        assume(np.abs(curve - level).min() > 1e-7)
        hit = np.flatnonzero(curve <= level)
        assert step == (int(hit[0]) if len(hit) else None)


def test_the_mean_over_random_teachers_and_starts_is_that_over_their_axes() -> None:
    """A random part with uncorrelated entries is the mean over p teachers (starts), each along one axis."""
    random = np.random.default_rng(1)
    x, fixed, spread = random.standard_normal((6, 4)), random.standard_normal(4), random.uniform(0.1, 3, 4)
    common: dict[str, Any] = {"learning_rate": 0.1, "noise_variance": 0.3, "weight_decay": 0.05}
    steps = np.arange(20)
    got = descent.expected_excess_risk(
        x, steps, teacher=fixed, start=-fixed, teacher_variances=spread, start_variances=2.0, **common
    ).bias
    parts = [descent.expected_excess_risk(x, steps, teacher=fixed, start=-fixed, **common).bias]
    for axis in np.eye(4):
        size = float(np.sqrt(axis @ spread))
        parts.append(descent.expected_excess_risk(x, steps, teacher=size * axis, start=0.0, **common).bias)
        parts.append(descent.expected_excess_risk(x, steps, teacher=0.0, start=axis * 2**0.5, **common).bias)
    np.testing.assert_allclose(got, np.sum(parts, axis=0), rtol=1e-9)


def test_modes_that_have_settled_give_the_same_losses_as_all_modes() -> None:
    random = np.random.default_rng(0)
    modes = ridge_grokking.modes_of(
        random.standard_normal((10, 30)), teacher=random.standard_normal(30), start=random.standard_normal(30)
    )
    steps = np.array([0, 20_000, 40_000])
    together = ridge_grokking.losses(modes, steps, learning_rate=0.05, weight_decay=1e-4)
    apart = ridge_grokking.losses(modes, steps[1:], learning_rate=0.05, weight_decay=1e-4)
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one[1:], other, rtol=1e-12)


def test_the_time_to_generalise_is_inversely_proportional_to_the_weight_decay() -> None:
    random = np.random.default_rng(3)
    x, start = random.standard_normal((20, 100)), 5 * random.standard_normal(100)
    teacher = np.linalg.pinv(x) @ random.standard_normal(20)
    modes = ridge_grokking.modes_of(x, teacher=teacher, start=start)
    for decay in (1e-3, 1e-2):
        exact = ridge_grokking.crossing_steps(
            modes, learning_rate=0.05, weight_decay=decay, train_level=1e-3, test_level=0.2, horizon=10**6
        )
        law = ridge_grokking.generalisation_steps(
            modes.null_start / modes.signal, test_level=0.2, learning_rate=0.05, weight_decay=decay
        )
        assert exact.test == pytest.approx(float(law), rel=0.01)
        assert exact.train is not None and exact.test is not None and exact.train < exact.test / 10


@pytest.mark.parametrize(
    ("train", "test", "label"),
    [
        (3, 5, "comprehension"),
        (3, 103, "grokking"),
        (3, 102, "comprehension"),
        (3, None, "memorization"),
        (None, None, "confusion"),
        (None, 4, "inversion"),
        (40, 4, "comprehension"),
    ],
)
def test_the_phases_are_those_of_lius_table(train: int | None, test: int | None, label: str) -> None:
    assert ridge_grokking.phase(ridge_grokking.Crossings(train=train, test=test), gap=100) == label


@pytest.mark.parametrize("gamma", [0.5, 2.0, 8.0])
def test_the_deterministic_equivalent_of_isotropic_inputs_is_the_limit_of_hastie(gamma: float) -> None:
    n = 400
    p = int(gamma * n)
    found = equivalent.excess_risk(n, np.ones(p), np.full(p, 2.0 / p), noise_variance=0.5)
    assert found == pytest.approx(minimum_norm.hastie_excess_risk(gamma, signal=2.0, noise_variance=0.5), rel=1e-9)


def test_the_implicit_ridge_solves_its_equation_and_is_the_weight_decay_for_many_examples() -> None:
    variances = np.arange(1.0, 31.0) ** -1.5
    for n, decay in ((10, 0.0), (10, 0.1), (100, 0.1)):
        kappa = equivalent.implicit_ridge(n, variances, weight_decay=decay)
        assert (variances / (variances + kappa)).sum() + n * decay / kappa == pytest.approx(n)
    assert equivalent.implicit_ridge(1e9, variances, weight_decay=0.1) == pytest.approx(0.1)
    assert equivalent.implicit_ridge(100, variances) == 0.0
    assert np.isinf(equivalent.excess_risk(30, variances, variances, noise_variance=1.0))
