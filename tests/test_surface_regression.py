"""The regression under levels and ridges, checked against closed forms and numerical integrals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtr

from orchestrator.surface.ep import propagate
from orchestrator.surface.kernel import matern52
from orchestrator.surface.regression import (
    AT_LEAST,
    AT_MOST,
    EXACT,
    CensoredLikelihood,
    Model,
    Objective,
    Observations,
    fit,
)


def wave(x: np.ndarray) -> np.ndarray:
    return np.sin(5 * x[:, 0]) + x[:, 1]


def mixed(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, kinds and values of a noisy wave; a third are lower and a third upper bounds."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, 2))
    x[n - n // 5 :] = x[: n // 5]
    kind = rng.choice([EXACT, AT_LEAST, AT_MOST], n)
    value = wave(x) + 0.2 * rng.standard_normal(n) - 0.3 * kind
    return x, kind, value


def test_with_numbers_alone_it_is_the_closed_form_of_a_gaussian_process() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((40, 2))
    y = wave(x) + 0.1 * rng.standard_normal(40)
    model = Model(rank=40)
    gp = fit(Observations.of(x, np.zeros(40, dtype=np.int64), y), model)
    q = rng.random((50, 2))

    def covariance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return gp.outputscale**2 * matern52(a, b, gp.lengthscale) + gp.mean_sd**2

    gram = covariance(x, x) + gp.noise**2 * np.eye(40)
    cross = covariance(q, x)
    mean, variance = gp.moments(q)
    np.testing.assert_allclose(mean, cross @ np.linalg.solve(gram, y), atol=2e-3)
    direct = np.diag(covariance(q, q) - cross @ np.linalg.solve(gram, cross.T))
    np.testing.assert_allclose(variance, direct, atol=2e-3)


@pytest.mark.parametrize("outliers", [0.0, 0.1])
def test_replicates_of_one_position_have_the_moments_of_the_integral(outliers: float) -> None:
    kind = np.array([EXACT, AT_LEAST, AT_LEAST, AT_MOST])
    value = np.array([0.4, 0.1, 0.6, 1.5])
    seen = CensoredLikelihood(
        at=np.zeros(4, dtype=np.int64),
        weight=np.ones(4),
        kind=kind,
        value=value,
        noise_factor=np.ones(4),
        noise=0.5,
        outlier_fraction=outliers,
        outlier_range=6.0,
    )
    got = propagate(np.array([[1.5]]), seen, tolerance=1e-8, rounds=300)

    def likelihood(f: float) -> float:
        number = (1 - outliers) * np.exp(-0.5 * ((value[0] - f) / 0.5) ** 2) / np.sqrt(2 * np.pi) / 0.5 + outliers / 6.0
        sides = ndtr(kind[1:] * (f - value[1:]) / 0.5)
        prior = np.exp(-0.5 * (f / 1.5) ** 2) / np.sqrt(2 * np.pi) / 1.5
        return float(prior * number * np.prod(outliers / 2 + (1 - outliers) * sides))

    mass, first, second = (quad(lambda f, p=p: f**p * likelihood(f), -9, 9, points=[0.4])[0] for p in range(3))
    assert got.log_evidence == pytest.approx(np.log(mass), abs=0.02)
    assert got.mean[0] == pytest.approx(first / mass, abs=0.02)
    assert got.variance[0] == pytest.approx(second / mass - (first / mass) ** 2, rel=0.1)


def test_the_gradient_is_the_slope_of_the_evidence() -> None:
    model = Model(outlier_fraction=0.03, outlier_range=5.0)
    objective = Objective(data=Observations.of(*mixed(60)), model=model, tolerance=1e-9, rounds=300)
    theta = np.log([0.4, 0.6, 1.1, 0.25])
    _, gradient = objective(theta)
    for i, step in enumerate(1e-4 * np.eye(4)):
        slope = (objective(theta + step)[0] - objective(theta - step)[0]) / 2e-4
        assert gradient[i] == pytest.approx(slope, abs=5e-3)


def test_bounds_alone_tell_the_function() -> None:
    """Numbers that are only above or below the wave still pin it: the censored likelihood uses them."""
    rng = np.random.default_rng(1)
    x = rng.random((400, 2))
    bound = rng.uniform(-1.5, 2.5, 400)
    kind = np.where(wave(x) + 0.1 * rng.standard_normal(400) >= bound, AT_LEAST, AT_MOST)
    gp = fit(Observations.of(x, kind, bound), Model())
    q = rng.random((500, 2))
    assert np.sqrt(np.mean((gp.moments(q)[0] - wave(q)) ** 2)) < 0.15


def test_the_order_of_the_trials_is_irrelevant_to_the_last_digit() -> None:
    x, kind, value = mixed(90)
    turn = np.random.default_rng(5).permutation(90)
    q = np.random.default_rng(6).random((30, 2))
    one, other = (
        fit(Observations.of(*data), Model()) for data in ((x, kind, value), (x[turn], kind[turn], value[turn]))
    )
    np.testing.assert_array_equal(one.moments(q)[0], other.moments(q)[0])
    np.testing.assert_array_equal(one.sample_weights(3, 0), other.sample_weights(3, 0))


def test_an_outlier_does_not_move_the_surface() -> None:
    x, _, _ = mixed(80)
    clean = wave(x) + 0.05 * np.random.default_rng(2).standard_normal(80)
    dirty = clean.copy()
    dirty[[3, 30, 50]] += [8.0, -9.0, 7.0]
    numbers = np.zeros(80, dtype=np.int64)
    model = Model(outlier_fraction=0.03, outlier_range=20.0)
    q = np.random.default_rng(3).random((200, 2))
    error = fit(Observations.of(x, numbers, dirty), model).moments(q)[0] - wave(q)
    plain = fit(Observations.of(x, numbers, dirty), Model()).moments(q)[0] - wave(q)
    assert np.sqrt(np.mean(error**2)) < 0.15
    assert np.sqrt(np.mean(error**2)) < 0.3 * np.sqrt(np.mean(plain**2))


def test_noise_that_depends_on_the_position_is_estimated_where_it_is() -> None:
    rng = np.random.default_rng(4)
    x = rng.random((300, 2))
    value = wave(x) + np.where(x[:, 0] > 0.5, 0.4, 0.02) * rng.standard_normal(300)
    gp = fit(Observations.of(x, np.zeros(300, dtype=np.int64), value), Model(heteroscedastic=True))
    quiet, loud = gp.noise_at(np.array([[0.2, 0.5], [0.8, 0.5]]))
    assert loud > 3 * quiet


def test_draws_have_the_moments_of_the_belief() -> None:
    gp = fit(Observations.of(*mixed(60)), Model())
    q = np.random.default_rng(0).random((20, 2))
    mean, variance = gp.moments(q)
    curves = gp.features(q) @ gp.sample_weights(4000, 0)
    np.testing.assert_allclose(curves.mean(axis=1), mean, atol=0.08)
    np.testing.assert_allclose(curves.std(axis=1), np.sqrt(variance), rtol=0.1)


def test_many_trials_need_no_more_features_than_the_rank() -> None:
    rng = np.random.default_rng(8)
    x = rng.random((5000, 2))
    value = wave(x) + 0.2 * rng.standard_normal(5000)
    gp = fit(Observations.of(x, np.zeros(5000, dtype=np.int64), value), Model(rank=200))
    q = rng.random((500, 2))
    assert gp.posterior.factor.shape[0] <= 201
    assert np.sqrt(np.mean((gp.moments(q)[0] - wave(q)) ** 2)) < 0.05
