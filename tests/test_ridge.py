"""The linear job: packed trials equal single ones; solution, descent and crossings equal plain linear algebra."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jobs.job import Member, ParamError, log_spaced_steps
from jobs.ridge import memory as ridge_memory
from jobs.ridge import pack as ridge_pack
from jobs.ridge.designs import Problems, make_problems
from jobs.ridge.job import Ridge
from jobs.ridge.params import RidgeParams
from tests.packing import assert_packed_is_solo, assert_same_curves, course_of, curves_of

JOB = Ridge()
DESCENT: dict[str, Any] = {"solver": "gradient_descent", "learning_rate": 0.02, "steps": 60, "curve_points": 12}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem_of(params: RidgeParams, seed: int = 0) -> Problems:
    return make_problems([params], [seed], "cpu")


def plain(problems: Problems) -> tuple[np.ndarray, np.ndarray]:
    return problems.x_SNP[0].numpy(), problems.y_SN[0].numpy()


# A packed trial is the trial.


@st.composite
def packs(draw: st.DrawFn) -> list[Member[RidgeParams]]:
    """Two to eight trials that may share a pack; everything that may differ inside a pack does."""
    design = draw(st.sampled_from(["gaussian", "gaussian", "orthogonal", "relu", "fourier", "linear_attention"]))
    levels = draw(st.booleans())
    descends = draw(st.booleans())
    shared = {
        "design": design,
        "solver": "gradient_descent" if descends else "min_norm",
        "stop_at_levels": levels and draw(st.booleans()),
    }
    wide = draw(st.booleans()) and design != "orthogonal"
    random_features = design in ("relu", "fourier")
    attention = design == "linear_attention"

    def one() -> Member[RidgeParams]:
        p = draw(st.integers(2, 14))
        # Near the threshold a solution amplifies rounding, which says nothing of packing.
        n = draw(st.integers(1, p - 1)) if wide else draw(st.integers(p + 2, 30))
        inputs = draw(st.integers(2, 14)) if random_features else draw(st.integers(p, 16 if wide else p + 2))
        if attention:
            inputs, p = draw(st.integers(2, 4)), 0
            n = draw(st.integers(1, 4) if wide else st.integers(26, 40))
        covariance = (
            "isotropic"
            if random_features or attention
            else draw(st.sampled_from(["isotropic", "power_law", "two_scale"]))
        )
        teachers = ["random", "equal", "power_law"]
        if not random_features and covariance != "two_scale" and p == inputs:
            teachers.append("row_space")
        own = {
            "sample_count": n,
            "inputs": inputs,
            "features": p,
            "covariance": covariance,
            "covariance_exponent": draw(st.sampled_from([0.5, 1.0])),
            "small_features": 1 if covariance == "two_scale" else 0,
            "small_scale": draw(st.sampled_from([0.3, 2.0])),
            "small_signal": draw(st.sampled_from([0.0, 3.0])),
            "teacher": "random" if attention else draw(st.sampled_from(teachers)),
            "context_length": draw(st.integers(1, 3)),
            "tasks": draw(st.sampled_from([0, 3])),
            "frequency_scale": draw(st.sampled_from([0.5, 1.0])),
            "signal": draw(st.sampled_from([0.5, 2.0])),
            "noise_variance": draw(st.sampled_from([0.0, 0.3])),
            "weight_decay": draw(st.sampled_from([0.0, 0.05, 1.0])),
            "learning_rate": draw(st.sampled_from([0.005, 0.02])),
            "init_scale": draw(st.sampled_from([0.0, 1.0, 5.0])),
            "steps": draw(st.integers(1, 150)),
            "curve_points": draw(st.integers(2, 12)),
            "train_level": draw(st.sampled_from([0.5, 0.9])) if levels else 0.0,
            "test_level": draw(st.sampled_from([0.6, 0.95])) if levels else 0.0,
        }
        return Member(params=RidgeParams(**shared, **own), seed=draw(st.integers(0, 3)))

    return [one() for _ in range(draw(st.integers(2, 8)))]


@given(pack=packs())
@settings(max_examples=40)
def test_a_packed_trial_is_the_trial(pack: list[Member[RidgeParams]]) -> None:
    course = assert_packed_is_solo(JOB, pack, rtol=1e-7, atol=1e-10)
    for position, member in enumerate(pack):
        schedule = log_spaced_steps(member.params.horizon, member.params.curve_points)
        steps = course.curves[position].step
        np.testing.assert_array_equal(steps, schedule[: len(steps)])
        if not member.params.stop_at_levels:
            assert len(steps) == len(schedule) == JOB.report_steps(member.params)


@given(pack=packs(), seed=st.integers(0, 1 << 30))
@settings(max_examples=15)
def test_the_order_of_a_pack_is_irrelevant(pack: list[Member[RidgeParams]], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(pack)).tolist()
    one, other = curves_of(JOB, pack), curves_of(JOB, [pack[k] for k in order])
    for place, position in enumerate(order):
        assert_same_curves(one[position], other[place], rtol=1e-7, atol=1e-10)


def test_a_pack_of_several_blocks_is_its_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that holds two data sets, and a machine that draws one at a time."""
    monkeypatch.setattr(ridge_pack, "CACHE_BYTES", 30_000)
    monkeypatch.setattr(ridge_memory, "DRAWN_BYTES", 1)
    pack = [
        Member(
            params=RidgeParams(**{**DESCENT, "steps": 10 + seed}, sample_count=20 + n, inputs=60, init_scale=i),
            seed=seed,
        )
        for seed in range(3)
        for n in (0, 3)
        for i in (0.0, 1.0)
    ]
    assert_packed_is_solo(JOB, pack, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", ["min_norm", "gradient_descent"])
def test_single_precision_is_double_precision_but_for_rounding(solver: str) -> None:
    params = RidgeParams(**{**DESCENT, "solver": solver}, sample_count=30, inputs=12, noise_variance=0.5)
    single = dataclasses.replace(params, precision="float32")
    one, other = (curves_of(JOB, [Member(params=p, seed=1)])[0] for p in (params, single))
    assert JOB.pack_key(params) != JOB.pack_key(single)
    assert_same_curves(one, other, rtol=1e-4, atol=1e-5)
    assert (one.values["test_loss"] != other.values["test_loss"]).any()


# The data.


def test_a_larger_problem_begins_with_the_smaller() -> None:
    small, more, wider = (
        plain(problem_of(RidgeParams(sample_count=n, inputs=9, features=p, noise_variance=0.2), seed=3))
        for n, p in ((5, 6), (8, 6), (5, 9))
    )
    np.testing.assert_array_equal(more[0][:5], small[0])
    np.testing.assert_allclose(more[1][:5], small[1], rtol=1e-12)
    np.testing.assert_array_equal(wider[0][:, :6], small[0])
    np.testing.assert_allclose(wider[1], small[1], rtol=1e-12)
    other = plain(problem_of(RidgeParams(sample_count=5, inputs=9, features=6), seed=4))
    assert not np.isclose(other[0], small[0]).any()


def test_an_orthogonal_design_has_the_populations_covariance() -> None:
    params = RidgeParams(
        design="orthogonal", sample_count=30, inputs=6, covariance="two_scale", small_features=2, small_scale=0.1
    )
    x, _ = plain(problem_of(params))
    np.testing.assert_allclose(x.T @ x / 30, np.diag([1, 1, 1, 1, 0.01, 0.01]), atol=1e-14)


def test_the_teacher_has_the_norms_it_is_said_to_have() -> None:
    two = RidgeParams(inputs=10, covariance="two_scale", small_features=3, signal=2.0, small_signal=400.0)
    beta = problem_of(two).population.target_SP[0].numpy()
    assert (beta[:7] ** 2).sum() == pytest.approx(2.0) and (beta[7:] ** 2).sum() == pytest.approx(400.0)
    row = RidgeParams(sample_count=4, inputs=10, teacher="row_space", signal=3.0)
    problems = problem_of(row)
    beta, x = problems.population.target_SP[0].numpy(), plain(problems)[0]
    assert (beta**2).sum() == pytest.approx(3.0)
    np.testing.assert_allclose(np.linalg.pinv(x) @ x @ beta, beta, atol=1e-12)
    decaying = RidgeParams(inputs=10, teacher="power_law", teacher_exponent=2.0)
    beta = problem_of(decaying).population.target_SP[0].numpy()
    np.testing.assert_allclose(beta[0] / beta, np.arange(1, 11))


@pytest.mark.parametrize("noise", [0.0, 2.5])
def test_targets_are_the_teachers_with_noise_of_the_stated_variance(noise: float) -> None:
    params = RidgeParams(sample_count=4000, inputs=5, noise_variance=noise)
    problems = problem_of(params)
    x, y = plain(problems)
    rest = y - x @ problems.population.target_SP[0].numpy()
    assert rest.var() == pytest.approx(noise, rel=0.1, abs=1e-20)


@pytest.mark.parametrize(("tasks", "shared"), [(1, True), (0, False)])
def test_contexts_of_one_task_share_its_coefficients(tasks: int, shared: bool) -> None:
    """One example without noise: y w z = y^2 in every context, for the w of the task."""
    params = RidgeParams(
        design="linear_attention", sample_count=50, inputs=2, context_length=1, tasks=tasks, signal=3.0
    )
    phi = plain(problem_of(params))[0].reshape(-1, 3)
    w, residual, *_ = np.linalg.lstsq(phi[:, :2], np.sqrt(2) * phi[:, 2], rcond=None)
    assert (residual[0] < 1e-12) == shared == (abs(w @ w - 3.0) < 1e-5)


def test_the_moments_of_linear_attention_are_those_of_many_contexts() -> None:
    params = RidgeParams(
        design="linear_attention", sample_count=400_000, inputs=2, context_length=3, signal=1.5, noise_variance=0.4
    )
    problems = problem_of(params)
    (x, y), population = plain(problems), problems.population
    moment, best = population.moment[0].numpy(), population.target_SP[0].numpy()
    second = x.T @ x / len(x)
    np.testing.assert_allclose(np.diag(second), moment, rtol=0.05)
    assert np.abs(second - np.diag(np.diag(second))).max() < 0.05
    np.testing.assert_allclose(x.T @ y / len(x), moment * best, atol=0.02)
    assert np.mean((x @ best - y) ** 2) - 0.4 == pytest.approx(float(population.rest_S[0]), rel=0.02)
    assert float(population.zero_risk()[0]) == pytest.approx(1.5)


# The solution and the descent, against plain algebra.


@pytest.mark.parametrize("design", ["gaussian", "orthogonal", "relu", "fourier", "linear_attention"])
@pytest.mark.parametrize(("n", "p"), [(30, 12), (12, 12), (12, 30)])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_solution_is_that_of_the_normal_equations(design: str, n: int, p: int, decay: float) -> None:
    if design == "orthogonal" and n < p:
        return
    inputs = {12: 3, 30: 5}[p] if design == "linear_attention" else p
    params = RidgeParams(design=design, sample_count=n, inputs=inputs, noise_variance=0.4, weight_decay=decay)
    problems = problem_of(params, seed=2)
    x, y = plain(problems)
    smoother = np.linalg.solve(x.T @ x + n * decay * np.eye(p), x.T) if decay else np.linalg.pinv(x)
    theta = smoother @ y
    values = {k: v[0] for k, v in curves_of(JOB, [Member(params=params, seed=2)])[0].values.items()}
    assert values["train_loss"] == pytest.approx(((x @ theta - y) ** 2).mean(), rel=1e-7, abs=1e-14)
    assert values["weight_norm"] == pytest.approx(np.linalg.norm(theta), rel=1e-7)
    population = problems.population
    moment = population.moment[0].numpy()
    if moment.ndim == 1:
        miss = theta - population.target_SP[0].numpy()
        excess = (moment * miss**2).sum() + float(population.rest_S[0])
        moment = np.diag(moment)
    else:
        excess = float(population.rest_S[0]) - 2 * theta @ population.target_SP[0].numpy() + theta @ moment @ theta
    assert values["excess_risk"] == pytest.approx(excess, rel=1e-6)
    assert values["test_loss"] == pytest.approx(excess + 0.4, rel=1e-6)
    effective = n * np.trace(smoother.T @ moment @ smoother)
    assert values["effective_parameters"] == pytest.approx(effective, rel=1e-6)


@pytest.mark.parametrize(("n", "p"), [(25, 10), (10, 10), (10, 25)])
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_the_descent_is_that_of_a_plain_loop(n: int, p: int, decay: float) -> None:
    params = RidgeParams(
        **DESCENT,
        sample_count=n,
        inputs=p,
        noise_variance=0.4,
        weight_decay=decay,
        init_scale=2.0,
        train_level=0.3,
        test_level=0.9,
    )
    problems = problem_of(params, seed=5)
    (x, y), beta = plain(problems), problems.population.target_SP[0].numpy()
    theta = 2.0 * problems.start_SP[0].numpy()
    train, test, smoother = [], [], np.zeros((p, n))
    for step in range(params.steps + 1):
        train.append(((x @ theta - y) ** 2).mean())
        test.append(((theta - beta) ** 2).sum())
        if step < params.steps:
            theta = theta - 0.02 * (x.T @ (x @ theta - y) / n + decay * theta)
            smoother = smoother - 0.02 * (x.T @ (x @ smoother - np.eye(n)) / n + decay * smoother)
    curves = curves_of(JOB, [Member(params=params, seed=5)])[0]
    np.testing.assert_allclose(curves.values["train_loss"], np.array(train)[curves.step], rtol=1e-9)
    np.testing.assert_allclose(curves.values["excess_risk"], np.array(test)[curves.step], rtol=1e-9)
    assert curves.values["weight_norm"][-1] == pytest.approx(np.linalg.norm(theta))
    assert curves.values["effective_parameters"][-1] == pytest.approx(n * (smoother**2).sum())
    for name, course, zero, level in (
        ("train_level_step", train, (y**2).mean(), 0.3),
        ("test_level_step", test, (beta**2).sum(), 0.9),
    ):
        hit = np.flatnonzero(np.array(course) / zero <= level)
        if len(hit):
            assert curves.values[name][-1] == hit[0]
        else:
            assert np.isnan(curves.values[name]).all()


def test_from_zero_the_descent_ends_at_the_minimum_norm_solution() -> None:
    shared: dict[str, Any] = {"sample_count": 15, "inputs": 40, "noise_variance": 0.5}
    long = RidgeParams(**{**DESCENT, "steps": 4000, "learning_rate": 0.2}, **shared)
    solved, descended = (curves_of(JOB, [Member(params=p, seed=1)])[0] for p in (RidgeParams(**shared), long))
    for name in ("test_loss", "excess_risk", "weight_norm", "effective_parameters"):
        assert descended.values[name][-1] == pytest.approx(solved.values[name][-1], rel=1e-8), name


@given(seed=st.integers(0, 1 << 20), points=st.integers(2, 9), stop=st.booleans(), decay=st.sampled_from([0.05, 0.2]))
@settings(max_examples=10)
def test_a_crossing_is_the_same_whenever_the_curves_are_measured(
    seed: int, points: int, stop: bool, decay: float
) -> None:
    def crossings(points: int, stop: bool) -> list[float]:
        params = RidgeParams(
            sample_count=6,
            inputs=20,
            teacher="row_space",
            solver="gradient_descent",
            learning_rate=0.05,
            steps=300,
            init_scale=1.0,
            weight_decay=decay,
            train_level=0.05,
            test_level=0.5,
            curve_points=points,
            stop_at_levels=stop,
        )
        values = curves_of(JOB, [Member(params=params, seed=seed)])[0].values
        return [float(values[name][-1]) for name in ("train_level_step", "test_level_step")]

    exact = crossings(40, False)
    assume(np.isfinite(exact).all())
    assert crossings(points, stop) == exact


def test_a_level_that_is_not_set_is_never_reached() -> None:
    params = RidgeParams(**DESCENT, sample_count=20, inputs=4, test_level=0.99)
    values = curves_of(JOB, [Member(params=params, seed=0)])[0].values
    assert np.isnan(values["train_level_step"]).all() and np.isfinite(values["test_level_step"][-1])


def test_a_trial_that_diverges_ends_and_leaves_its_neighbours_alone() -> None:
    calm = RidgeParams(**{**DESCENT, "steps": 3000}, sample_count=10, inputs=30)
    wild = dataclasses.replace(calm, learning_rate=5.0)
    pack = [Member(params=p, seed=0) for p in (calm, wild, calm)]
    course = course_of(JOB, pack)
    assert not np.isfinite(course.curves[1].values["train_loss"][-1])
    assert course.curves[1].step[-1] < 3000 == course.curves[0].step[-1]
    assert_same_curves(course.curves[0], curves_of(JOB, pack[:1])[0], rtol=1e-9, atol=1e-12)


# Parameters.


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"inputs": 5, "features": 6}, "features"),
        ({"design": "relu", "covariance": "power_law"}, "covariance"),
        ({"design": "fourier", "teacher": "row_space"}, "teacher"),
        ({"design": "linear_attention", "features": 3}, "features"),
        ({"design": "linear_attention", "teacher": "equal"}, "teacher"),
        ({"design": "linear_attention", "covariance": "power_law"}, "covariance"),
        ({"design": "orthogonal", "sample_count": 4, "inputs": 5}, "sample_count"),
        ({"inputs": 5, "features": 3, "teacher": "row_space"}, "features"),
        ({"covariance": "two_scale"}, "small_features"),
        ({"small_features": 2}, "small_features"),
        ({"inputs": 5, "covariance": "two_scale", "small_features": 5}, "small_features"),
        ({"inputs": 5, "covariance": "two_scale", "small_features": 2, "teacher": "row_space"}, "teacher"),
        ({"stop_at_levels": True, "train_level": 0.1}, "stop_at_levels"),
        ({"noise_variance": -1.0}, "noise_variance"),
    ],
)
def test_a_wrong_parameter_is_named(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ParamError) as caught:
        RidgeParams(**changes)
    assert caught.value.name == name


@given(pack=packs(), models=st.integers(1, 500))
@settings(max_examples=40)
def test_a_cost_is_finite_and_grows_with_models_steps_and_padding(pack: list[Member[RidgeParams]], models: int) -> None:
    params = pack[0].params
    extent = JOB.extent(params)
    one, many, padded = (
        JOB.cost(params, extent=e, models=m)
        for e, m in ((extent, 1), (extent, models), (tuple(s + 7 for s in extent), models))
    )
    for name in ("launches", "matmul_flop", "element_visits", "memory_bytes"):
        assert 0 < getattr(one, name) <= getattr(many, name) < np.inf, name
        if name != "memory_bytes":  # larger problems are drawn and trained in smaller pieces
            assert getattr(many, name) <= getattr(padded, name) < np.inf, name
        assert getattr(many, name) <= models * getattr(one, name) * (1 + 1e-9), name
    if params.iterative:
        longer = JOB.cost(dataclasses.replace(params, steps=2 * params.steps + 50), extent=extent, models=1)
        assert longer.matmul_flop > one.matmul_flop and longer.memory_bytes == one.memory_bytes
