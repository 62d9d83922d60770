"""The phase classifier: its properties, and values checked against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal, qmc

from orchestrator.surface.classifier import GpClassifier, ProbitLikelihood, fit_classifier
from orchestrator.surface.ep import propagate
from orchestrator.surface.kernel import inducing_features, matern52, matern52_gradients

QUERY = qmc.Sobol(2, rng=np.random.default_rng(99)).random_base2(10)


def sobol(n: int, d: int = 2, seed: int = 0) -> np.ndarray:
    return qmc.Sobol(d, rng=np.random.default_rng(seed)).random_base2(int(np.log2(n)))


def above(x: np.ndarray) -> np.ndarray:
    """Two classes: above and below a curve."""
    return (x[:, 1] > 0.5 + 0.2 * np.sin(5 * x[:, 0])).astype(np.int64)


def quarters(x: np.ndarray) -> np.ndarray:
    """Three classes of four: 0, 2 and 3."""
    return np.where(x[:, 0] < 0.45, 0, np.where(x[:, 1] < 0.6, 2, 3))


@pytest.fixture(scope="module")
def three() -> GpClassifier:
    x = sobol(128)
    return fit_classifier(x, quarters(x), classes=4)


def test_the_order_of_trials_is_irrelevant() -> None:
    x = sobol(64)
    x = np.concatenate([x, x[:9]])
    label = above(x)
    label[-3:] = 1 - label[-3:]
    order = np.random.default_rng(3).permutation(len(x))
    one, other = fit_classifier(x, label, classes=2), fit_classifier(x[order], label[order], classes=2)
    np.testing.assert_array_equal(one.belief(QUERY), other.belief(QUERY))
    assert one.uncertain_area() == other.uncertain_area()


def test_beliefs_sum_to_one_and_a_class_never_seen_has_none(three: GpClassifier) -> None:
    belief = three.belief(QUERY)
    np.testing.assert_allclose(belief.sum(axis=1), 1.0)
    assert belief.min() >= 0
    assert not belief[:, 1].any()
    assert belief[:, [0, 2, 3]].max(axis=0).min() > 0.95


def test_the_label_is_the_largest_belief(three: GpClassifier) -> None:
    np.testing.assert_array_equal(three.label(QUERY), three.belief(QUERY).argmax(axis=1))
    assert np.mean(three.label(QUERY) != quarters(QUERY)) < 0.04


def test_the_names_of_two_classes_can_be_swapped() -> None:
    x = sobol(64)
    one, other = fit_classifier(x, above(x), classes=2), fit_classifier(x, 1 - above(x), classes=2)
    np.testing.assert_allclose(one.belief(QUERY), other.belief(QUERY)[:, ::-1], atol=2e-3)


def test_a_single_class_is_not_certain_far_from_all_trials() -> None:
    x = 0.2 * sobol(32)
    surface = fit_classifier(x, np.full(len(x), 1), classes=3)
    near, far = surface.belief(np.array([[0.1, 0.1], [0.95, 0.95]]))
    assert near[1] > 0.95 > far[1] > 0.4
    np.testing.assert_allclose([near.sum(), far.sum()], 1.0)
    np.testing.assert_array_equal(surface.label(QUERY), 1)
    assert 0.3 < surface.uncertain_area() < 1


def test_trials_without_a_label_say_nothing() -> None:
    x = sobol(64)
    label = above(x)
    more = np.concatenate([x, QUERY[:20]])
    one = fit_classifier(x, label, classes=2)
    other = fit_classifier(more, np.concatenate([label, np.full(20, -1)]), classes=2)
    np.testing.assert_array_equal(one.belief(QUERY), other.belief(QUERY))


def test_no_labelled_trial_at_all_is_no_belief() -> None:
    surface = fit_classifier(sobol(32), np.full(32, -1), classes=4)
    np.testing.assert_allclose(surface.belief(QUERY), 0.25)
    assert surface.uncertain_area() == 1.0


def test_replicates_that_disagree_teach_the_noise() -> None:
    x = np.repeat(sobol(64), 4, axis=0)
    clean = above(x)
    flipped = np.where(np.random.default_rng(5).random(len(x)) < 0.12, 1 - clean, clean)
    quiet, loud = fit_classifier(x, clean, classes=2), fit_classifier(x, flipped, classes=2)
    assert quiet.noise() < 0.01
    assert 0.06 < loud.noise() < 0.18
    assert np.mean(loud.label(QUERY) != above(QUERY)) < 0.08


def test_the_majority_of_replicates_decides() -> None:
    x = sobol(64)
    centre = np.array([[0.5, 0.98]])
    x = np.concatenate([x, np.repeat(centre, 5, axis=0)])
    label = above(x)
    label[-5:] = [0, 1, 1, 0, 1]
    assert fit_classifier(x, label, classes=2).label(centre)[0] == 1


def test_one_odd_label_among_many_makes_no_island() -> None:
    x = sobol(256)
    label = above(x)
    odd = int(np.argmin(np.linalg.norm(x - [0.3, 0.2], axis=1)))
    label[odd] = 1 - label[odd]
    assert fit_classifier(x, label, classes=2).label(x[odd : odd + 1])[0] == 1 - label[odd]


def test_each_axis_has_a_separate_length_scale() -> None:
    x = sobol(128)
    label = (np.sin(14 * x[:, 0]) > 0).astype(np.int64)
    across, along = fit_classifier(x, label, classes=2).hyper.lengthscale
    assert along > 3 * across


def test_a_fit_that_starts_from_an_earlier_one_gives_nearly_the_same_map() -> None:
    x = sobol(256, seed=4)
    label = above(x)
    before = fit_classifier(x[:64], label[:64], classes=2)
    almost = fit_classifier(x[:200], label[:200], classes=2, previous=before)
    warm, cold = fit_classifier(x, label, classes=2, previous=almost), fit_classifier(x, label, classes=2)
    assert np.mean(warm.label(QUERY) != cold.label(QUERY)) < 0.004
    assert abs(warm.uncertain_area() - cold.uncertain_area()) < 0.02


def test_more_trials_leave_less_uncertain() -> None:
    areas = [fit_classifier(sobol(n), above(sobol(n)), classes=2).uncertain_area() for n in (32, 128, 512)]
    assert areas[0] > areas[1] > areas[2] > 0


@pytest.mark.parametrize("d", [2, 3, 4])
def test_maps_of_two_to_four_axes(d: int) -> None:
    x = sobol(256, d)
    query = sobol(1024, d, seed=1)
    label = (x.sum(axis=1) > d / 2).astype(np.int64)
    surface = fit_classifier(x, label, classes=2)
    assert surface.dimensions == d
    assert np.mean(surface.label(query) != (query.sum(axis=1) > d / 2)) < 0.05


def test_low_rank_features_give_the_same_map() -> None:
    x = sobol(512)
    label = above(x)
    full = fit_classifier(x, label, classes=2, rank=512, learn_from=128)
    low = fit_classifier(x, label, classes=2, rank=128, learn_from=128)
    assert np.abs(full.belief(QUERY) - low.belief(QUERY)).max() < 0.02


def test_the_features_have_the_covariance() -> None:
    x, lengthscale = sobol(64, 3), np.array([0.3, 0.5, 0.9])
    full = inducing_features(x, lengthscale, rank=64, residual=0.0)
    query = sobol(32, 3, seed=8)
    np.testing.assert_allclose(full.train @ full.train.T, matern52(x, x, lengthscale), atol=1e-9)
    np.testing.assert_allclose(full.train @ full.at(query).T, matern52(x, query, lengthscale), atol=1e-8)


def test_gradients_are_the_finite_differences() -> None:
    x, lengthscale = sobol(16, 3), np.array([0.3, 0.5, 0.9])
    _, gradients = matern52_gradients(x, lengthscale)
    for axis in range(3):
        step = np.where(np.arange(3) == axis, 1e-5, 0.0)
        up, down = (matern52(x, x, lengthscale * np.exp(sign * step)) for sign in (1, -1))
        np.testing.assert_allclose(gradients[axis], (up - down) / 2e-5, atol=1e-8)


def probit(y: np.ndarray, *, rate: float, at: np.ndarray | None = None, weight: np.ndarray | None = None):
    """Labels at positions 0, 1, ..., each once, unless said otherwise."""
    at = np.arange(len(y)) if at is None else at
    return ProbitLikelihood(at=at, weight=np.ones(len(y)) if weight is None else weight, y=y, label_noise_rate=rate)


def test_the_evidence_is_the_probability_of_the_labels() -> None:
    """One label: one half. Two: an orthant of a bivariate normal, known in closed form."""
    variance, correlation, rate = 4.0, 0.6, 0.05
    root = np.linalg.cholesky(variance * np.array([[1, correlation], [correlation, 1]]))
    alone = propagate(root[:1], probit(np.ones(1), rate=rate))
    assert alone.log_evidence == pytest.approx(np.log(0.5), abs=1e-6)
    both = propagate(root, probit(np.ones(2), rate=0.0), tolerance=1e-8)
    orthant = 0.25 + np.arcsin(correlation * variance / (1 + variance)) / (2 * np.pi)
    assert both.log_evidence == pytest.approx(np.log(orthant), abs=2e-3)


def test_the_posterior_has_the_moments_of_an_integral() -> None:
    """Three labels, one contradicting its neighbour, against a brute-force sum over a grid of latent values."""
    x, y, rate = np.array([[0.1], [0.2], [0.35]]), np.array([1.0, 1.0, -1.0]), 0.1
    covariance = 2.0 * matern52(x, x, np.array([0.3]))
    posterior = propagate(np.linalg.cholesky(covariance), probit(y, rate=rate), tolerance=1e-8)
    axis = np.linspace(-8, 8, 81)
    f = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    mass = multivariate_normal(cov=covariance).pdf(f)
    for i in range(3):
        same = probit(np.full(len(f), y[i]), rate=rate)
        mass *= np.exp(same.moments(f[:, i], np.zeros(len(f))).log_mass)
    cell = (axis[1] - axis[0]) ** 3
    assert posterior.log_evidence == pytest.approx(np.log(mass.sum() * cell), abs=5e-3)
    np.testing.assert_allclose(posterior.mean, (f * mass[:, None]).sum(axis=0) / mass.sum(), atol=0.02)


def test_replicates_are_one_site_with_a_weight() -> None:
    """Two positions show labels of both kinds."""
    root = np.linalg.cholesky(3.0 * matern52(sobol(8), sobol(8), np.array([0.4, 0.4])))
    at = np.array([0, 1, 2, 3, 4, 5, 6, 7, 2, 5])
    y = np.where(np.arange(10) % 3 == 0, 1.0, -1.0)
    times = np.array([1, 2, 3, 1, 1, 2, 1, 4, 2, 1])
    counted = propagate(root, probit(y, rate=0.02, at=at, weight=times.astype(float)), tolerance=1e-7)
    single = propagate(root, probit(np.repeat(y, times), rate=0.02, at=np.repeat(at, times)), tolerance=1e-7)
    rows = np.repeat(at, times)
    alone = propagate(root[rows], probit(np.repeat(y, times), rate=0.02), tolerance=1e-7)
    for other in (single, alone):
        np.testing.assert_allclose(counted.weights, other.weights, atol=1e-5)
        assert counted.log_evidence == pytest.approx(other.log_evidence, abs=1e-5)


def test_freezing_sites_that_have_converged_does_not_change_the_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.concatenate([sobol(128), sobol(128)[:20]])
    label = np.where(np.arange(148) % 37 == 0, 1 - above(x), above(x))
    frozen = fit_classifier(x, label, classes=2)
    monkeypatch.setattr(ProbitLikelihood, "frozen_below", 0.0)
    np.testing.assert_allclose(fit_classifier(x, label, classes=2).belief(QUERY), frozen.belief(QUERY), atol=0.01)
