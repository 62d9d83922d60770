"""Predictions of closed forms for a ridge trial.

A closed form that is exact given the data is averaged over a few data sets that are drawn here, and the prediction has
the standard error of that mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from jobs.curves import gap
from jobs.job import Censored, Prediction, log_spaced_steps
from jobs.ridge.params import RidgeParams
from jobs.theory import descent, equivalent, minimum_norm, ridge_grokking
from jobs.theory.domain import Floats

DRAWS = 9
"""Data sets that a prediction is averaged over; an odd number, for the median."""
LARGEST = 1 << 20
"""Largest product of examples and inputs for which data sets are drawn (about a second)."""


def predict(params: RidgeParams) -> Mapping[str, Prediction]:
    """Observation or metric -> prediction; empty where no closed form holds (random features, attention)."""
    if params.design not in ("gaussian", "orthogonal"):
        return {}
    if params.iterative:
        return {**_course(params), **_crossings(params)}
    return _solution(params)


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """What the formulas for a trial need, without any random number."""

    variances: Floats
    """(D,) of the inputs."""
    squares: Floats
    """(D,) mean squared coefficients."""
    signs: bool
    """Whether the coefficients themselves are known; otherwise their direction is random."""


def _problem(params: RidgeParams) -> _Problem:
    inputs = params.inputs
    place = np.arange(1, inputs + 1, dtype=np.float64)
    variances = place**-params.covariance_exponent if params.covariance == "power_law" else np.ones(inputs)
    shares = place**-params.teacher_exponent if params.teacher == "power_law" else np.ones(inputs)
    small = place > inputs - params.small_features
    if params.covariance == "two_scale":
        variances = np.where(small, params.small_scale**2, variances)
    squares = np.where(small, 0.0, shares) * params.signal / shares[~small].sum()
    if small.any():
        squares += np.where(small, shares, 0.0) * params.small_signal / shares[small].sum()
    return _Problem(variances=variances, squares=squares, signs=params.teacher in ("equal", "power_law"))


def _solution(params: RidgeParams) -> Mapping[str, Prediction]:
    """Minimum-norm least squares, isotropic Gaussian design: exact at any size."""
    if params.weight_decay or params.design != "gaussian" or params.covariance != "isotropic":
        return _equivalent(params)
    n, p = params.sample_count, params.fitted
    count, source = float(minimum_norm.effective_parameters(n, p)), "Curth et al. 2023, definition; Gaussian mean"
    effective = {"final_effective_parameters": Prediction(value=count, source=source)}
    if params.teacher == "row_space":
        return effective
    used, unused, noise = (squares := _problem(params).squares)[:p].sum(), squares[p:].sum(), params.noise_variance
    risk = float(minimum_norm.belkin_hsu_xu_risk(n, p, used=used, unused=unused, noise_variance=noise))
    source = "Belkin, Hsu and Xu 2019, theorem 1"
    return {
        "final_test_loss": Prediction(value=risk, source=source),
        "final_excess_risk": Prediction(value=risk - noise, source=source),
        **effective,
    }


def _equivalent(params: RidgeParams) -> Mapping[str, Prediction]:
    """Any spectrum, with or without weight decay: the limit of many examples."""
    if params.design != "gaussian" or params.teacher == "row_space":
        return {}
    problem, p, noise = _problem(params), params.fitted, params.noise_variance
    left = float((problem.variances * problem.squares)[p:].sum())  # unused Gaussian inputs are noise
    risk = left + float(
        equivalent.excess_risk(
            params.sample_count,
            problem.variances[:p],
            problem.squares[:p],
            noise_variance=noise + left,
            weight_decay=params.weight_decay,
        )
    )
    source = "deterministic equivalent, Hastie et al. 2019, theorem 5"
    return {
        "final_test_loss": Prediction(value=risk + noise, source=source),
        "final_excess_risk": Prediction(value=risk, source=source),
    }


@lru_cache(maxsize=16)
def _inputs(draw: int, n: int, inputs: int) -> Floats:
    """(n, D) standard normal numbers; the same for all trials of a sweep, as the trials' own data are."""
    return np.asarray(np.random.default_rng([draw, n, inputs]).standard_normal((n, inputs)))


def _draws(params: RidgeParams) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Training inputs (n, D), true and initial coefficients (D,), distributed as those of a trial."""
    problem = _problem(params)
    for draw in range(DRAWS):
        x = _training_inputs(params, draw)
        random = np.random.default_rng([draw, 1])
        teacher, start = np.sqrt(problem.squares), random.standard_normal(params.inputs)
        if not problem.signs:
            teacher = random.standard_normal(params.inputs)
        if params.teacher == "row_space":
            _, _, v = np.linalg.svd(x, full_matrices=False)
            teacher = v.T @ (v @ teacher)
        teacher = teacher * np.sqrt(params.signal) / np.linalg.norm(teacher)
        yield x, teacher, start * params.init_scale / np.linalg.norm(start)


def _training_inputs(params: RidgeParams, draw: int) -> Floats:
    n, inputs, variances = params.sample_count, params.inputs, _problem(params).variances
    if params.design == "gaussian":
        return np.asarray(_inputs(draw, n, inputs) * np.sqrt(variances), dtype=np.float64)
    x = np.zeros((n, inputs))
    np.fill_diagonal(x, np.sqrt(n * variances))
    return x


def _course(params: RidgeParams) -> Mapping[str, Prediction]:
    """Test loss along the steps of gradient descent; the mean over teachers and starts is exact."""
    n, p = params.sample_count, params.fitted
    if params.teacher == "row_space" or n * params.inputs > LARGEST:
        return {}
    steps = log_spaced_steps(params.horizon, params.curve_points, params.curve_until)
    problem = _problem(params)
    left = float((problem.variances * problem.squares)[p:].sum())
    # Unused Gaussian inputs are noise; unused orthogonal ones do not affect the fit.
    noise = params.noise_variance + (left if params.design == "gaussian" else 0.0)
    squares = problem.squares[:p]
    curves = []
    for draw in range(DRAWS if params.design == "gaussian" else 1):
        with np.errstate(over="ignore", invalid="ignore"):
            risk = descent.expected_excess_risk(
                _training_inputs(params, draw)[:, :p],
                steps,
                learning_rate=params.learning_rate,
                noise_variance=noise,
                variances=problem.variances[:p],
                weight_decay=params.weight_decay,
                teacher=np.sqrt(squares) if problem.signs else 0.0,
                teacher_variances=0.0 if problem.signs else squares,
                start_variances=params.init_scale**2 / p,
            )
        curves.append(risk.total + left)
    drawn = np.array(curves)
    error = drawn.std(axis=0, ddof=1) / np.sqrt(len(drawn)) if len(drawn) > 1 else np.zeros(len(steps))
    source = "gradient descent on least squares, exact given X"
    mean = drawn.mean(axis=0)
    excess = Prediction(value=mean, step=steps, standard_error=error, source=source)
    return {"excess_risk": excess, "test_loss": replace(excess, value=mean + params.noise_variance)}


def _crossings(params: RidgeParams) -> Mapping[str, Prediction]:
    """The level steps of ridge grokking; `Ridge.phase` gets the predicted phase from them as from observations."""
    if (
        not (params.train_level and params.test_level)
        or params.noise_variance
        or params.covariance != "isotropic"
        or params.fitted != params.inputs
        or params.sample_count * params.inputs > LARGEST
    ):
        return {}
    drawn: list[list[float]] = []
    for x, teacher, start in _draws(params):
        modes = ridge_grokking.modes_of(x, teacher=teacher, start=start)
        if params.learning_rate >= ridge_grokking.largest_learning_rate(modes, params.weight_decay):
            return {}
        crossed = ridge_grokking.crossing_steps(
            modes,
            learning_rate=params.learning_rate,
            weight_decay=params.weight_decay,
            train_level=params.train_level,
            test_level=params.test_level,
            horizon=params.horizon,
        )
        drawn.append([np.inf if step is None else float(step) for step in (crossed.train, crossed.test)])
    horizon, source = float(params.horizon), "ridge regression by gradient descent, exact given X"
    predicted: list[tuple[float | Censored, float]] = []
    for steps in np.array(drawn).T:
        reached, median = steps[np.isfinite(steps)], float(np.median(steps))
        # The median of a few varies about 1.25 times as much as their mean.
        error = 1.25 * float(np.std(reached, ddof=1)) / np.sqrt(len(reached)) if len(reached) > 1 else 0.0
        predicted.append((median if np.isfinite(median) else Censored(horizon), error))
    (train, _), (test, _) = predicted
    values = (*predicted, (gap(train, test, horizon), 0.0), (Censored(horizon), 0.0))
    names = ("train_level_step", "test_level_step", "level_gap", "diverged_step")
    return {
        name: Prediction(value=value, standard_error=error, source=source)
        for name, (value, error) in zip(names, values, strict=True)
    }
