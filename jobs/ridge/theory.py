"""What the closed forms say of a trial of `jobs.ridge.job`, where one holds.

Where the closed form is exact only given the data, it is averaged over a few data sets drawn here; the standard error
of that mean is stated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jobs.job import Censored, Prediction, log_spaced_steps
from jobs.ridge.params import RidgeParams
from jobs.theory import descent, minimum_norm, ridge_grokking
from jobs.theory.domain import Floats

DRAWS = 9
"""Data sets that a prediction is averaged over; odd, for the median."""
LARGEST = 1 << 20
"""Examples times features up to which data sets are drawn for a prediction (a second or so at most)."""


def predict(params: RidgeParams) -> Mapping[str, Prediction]:
    """Observation or metric -> prediction; empty where no closed form holds (random features)."""
    if params.design in ("relu", "fourier"):
        return {}
    if params.iterative:
        return {**_course(params), **_crossings(params)}
    return _solution(params)


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """What a trial's formulas need, without any drawn number."""

    variances: Floats
    """(D,) of the inputs."""
    squares: Floats
    """(D,) mean squared coefficients."""
    signs: bool
    """Whether the coefficients are known up to nothing (else their direction is random)."""


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
        return {}
    n, p = params.sample_count, params.fitted
    found = {
        "final_effective_parameters": Prediction(
            value=float(minimum_norm.effective_parameters(n, p)), source="Curth et al. 2023, definition; Gaussian mean"
        )
    }
    if params.teacher == "row_space":
        return found
    squares = _problem(params).squares
    risk = float(
        minimum_norm.belkin_hsu_xu_risk(
            n, p, used=squares[:p].sum(), unused=squares[p:].sum(), noise_variance=params.noise_variance
        )
    )
    source = "Belkin, Hsu and Xu 2019, theorem 1"
    return {
        "final_test_loss": Prediction(value=risk, source=source),
        "final_excess_risk": Prediction(value=risk - params.noise_variance, source=source),
        **found,
    }


@lru_cache(maxsize=16)
def _inputs(draw: int, n: int, inputs: int) -> Floats:
    """(n, D) standard normal numbers; the same for all trials of a sweep, as the trials' own data are."""
    z: Floats = np.random.default_rng([draw, n, inputs]).standard_normal((n, inputs))
    return z


def _draws(params: RidgeParams) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Isotropic training inputs (n, D), true and initial coefficients (D,), as a trial might have them."""
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
    """Test loss along the steps of gradient descent, the mean over teachers and starts exact."""
    n, p = params.sample_count, params.fitted
    if params.teacher == "row_space" or n * params.inputs > LARGEST:
        return {}
    steps = log_spaced_steps(params.horizon, params.curve_points)
    problem = _problem(params)
    left = float((problem.variances * problem.squares)[p:].sum())
    # Unused Gaussian inputs are noise; unused orthogonal ones do not touch the fit.
    heard = params.noise_variance + (left if params.design == "gaussian" else 0.0)
    squares = problem.squares[:p]
    curves = []
    for draw in range(DRAWS if params.design == "gaussian" else 1):
        with np.errstate(over="ignore", invalid="ignore"):
            excess = descent.expected_excess_risk(
                _training_inputs(params, draw)[:, :p],
                steps,
                learning_rate=params.learning_rate,
                noise_variance=heard,
                variances=problem.variances[:p],
                weight_decay=params.weight_decay,
                teacher=np.sqrt(squares) if problem.signs else 0.0,
                teacher_variances=0.0 if problem.signs else squares,
                start_variances=params.init_scale**2 / p,
            ).total
        curves.append(excess + left)
    drawn = np.array(curves)
    error = drawn.std(axis=0, ddof=1) / np.sqrt(len(drawn)) if len(drawn) > 1 else np.zeros(len(steps))
    source = "gradient descent on least squares, exact given X"
    return {
        "excess_risk": Prediction(value=drawn.mean(axis=0), step=steps, standard_error=error, source=source),
        "test_loss": Prediction(
            value=drawn.mean(axis=0) + params.noise_variance, step=steps, standard_error=error, source=source
        ),
    }


def _crossings(params: RidgeParams) -> Mapping[str, Prediction]:
    """The level steps of ridge grokking, and so the phase: `Ridge.phase` reads these as it reads observations."""
    if (
        not (params.train_level and params.test_level)
        or params.noise_variance
        or params.covariance != "isotropic"
        or params.fitted != params.inputs
        or params.sample_count * params.inputs > LARGEST
    ):
        return {}
    found: dict[str, list[float]] = {"train_level_step": [], "test_level_step": []}
    horizon, diverges = float(params.horizon), 0
    for x, teacher, start in _draws(params):
        modes = ridge_grokking.modes_of(x, teacher=teacher, start=start)
        diverges += params.learning_rate >= ridge_grokking.largest_learning_rate(modes, params.weight_decay)
        crossed = ridge_grokking.crossing_steps(
            modes,
            learning_rate=params.learning_rate,
            weight_decay=params.weight_decay,
            train_level=params.train_level,
            test_level=params.test_level,
            horizon=params.horizon,
        )
        for name, step in (("train_level_step", crossed.train), ("test_level_step", crossed.test)):
            found[name].append(np.inf if step is None else float(step))
    if diverges:
        return {}
    source = "ridge regression by gradient descent, exact given X"
    predicted: dict[str, Prediction] = {}
    for name, steps in found.items():
        middle = float(np.median(steps))
        reached = [step for step in steps if np.isfinite(step)]
        # The median of a few varies about 1.25 times as much as their mean.
        error = 1.25 * float(np.std(reached, ddof=1)) / np.sqrt(len(reached)) if len(reached) > 1 else 0.0
        predicted[name] = Prediction(
            value=middle if np.isfinite(middle) else Censored(horizon), standard_error=error, source=source
        )
    train, test = predicted["train_level_step"].value, predicted["test_level_step"].value
    gap: float | Censored = Censored(horizon)
    if isinstance(train, float):
        gap = test - train if isinstance(test, float) else Censored(horizon - train)
    predicted["level_gap"] = Prediction(value=gap, source=source)
    predicted["diverged_step"] = Prediction(value=Censored(horizon), source=source)
    return predicted
