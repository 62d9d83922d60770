"""Reductions of the linear job, and its theory beside the measurement."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from jobs.job import Censored, Curves, Member, Prediction
from jobs.ridge.job import Ridge
from jobs.ridge.params import RidgeParams, RidgeThresholds
from tests.packing import curves_of

JOB = Ridge()
LIMITS = RidgeThresholds()
LEVELS: dict[str, Any] = {
    "solver": "gradient_descent",
    "train_level": 1e-3,
    "test_level": 0.2,
    "sample_count": 20,
    "inputs": 100,
    "teacher": "row_space",
    "learning_rate": 0.05,
    "steps": 1000,
    "curve_points": 5,
}


def curves(steps: list[int], **values: list[float]) -> Curves:
    never = [math.nan] * len(steps)
    full = dict.fromkeys(JOB.metrics, [1.0] * len(steps)) | {"train_level_step": never, "test_level_step": never}
    return Curves(step=np.array(steps), values={k: np.array(v) for k, v in {**full, **values}.items()})


def label(params: RidgeParams, measured: Curves, limits: RidgeThresholds = LIMITS) -> str:
    return JOB.phase(params, JOB.observe(params, measured, limits), limits)


@pytest.mark.parametrize(
    ("train", "test", "phase"),
    [
        (10, 500, "comprehension"),
        (10, 1010, "grokking"),
        (10, 1009, "comprehension"),
        (10, math.nan, "memorization"),
        (math.nan, math.nan, "confusion"),
        (math.nan, 10, "inversion"),
    ],
)
def test_with_both_levels_the_phases_are_lius(train: float, test: float, phase: str) -> None:
    measured = curves([1, 1000], train_level_step=[math.nan, train], test_level_step=[math.nan, test])
    assert label(RidgeParams(**LEVELS), measured) == phase


@pytest.mark.parametrize(
    ("inputs", "train", "phase"),
    [
        (5, 0.1, "underparameterised"),
        (10, 0.1, "overparameterised"),
        (20, 1e-9, "interpolating"),
        (5, 1e-9, "interpolating"),
        (5, math.inf, "diverged"),
    ],
)
def test_without_levels_the_phase_tells_whether_the_data_are_interpolated(
    inputs: int, train: float, phase: str
) -> None:
    measured = curves([1], relative_train_loss=[train], train_loss=[train])
    assert label(RidgeParams(sample_count=10, inputs=inputs), measured) == phase


def test_not_reached_is_censored_at_the_horizon_and_the_gap_at_what_is_left() -> None:
    measured = curves([1, 50], train_level_step=[4, 4])
    seen = JOB.observe(RidgeParams(**LEVELS), measured, LIMITS)
    assert seen["train_level_step"] == 4.0 and seen["test_level_step"] == Censored(50.0)
    assert seen["level_gap"] == Censored(46.0) and seen["diverged_step"] == Censored(50.0)


def test_a_curve_claims_no_peak_of_its_own() -> None:
    """A bump of 0.01 was a peak whatever the scale of the loss."""
    measured = curves([1, 2, 4, 8, 16], test_loss=[500.0, 200.0, 200.02, 150.0, 100.0])
    seen = JOB.observe(RidgeParams(**LEVELS), measured, LIMITS)
    assert "test_loss_peak" in JOB.retired and not set(seen) & set(JOB.retired)


def test_the_parameters_are_the_features_fitted_and_the_best_loss_is_not_the_last() -> None:
    params = RidgeParams(inputs=12, features=5, sample_count=20)
    values = {"train_loss": [1.0, 0.5, 0.2], "relative_train_loss": [1.0, 0.5, 0.2], "test_loss": [1.0, 0.4, 0.7]}
    seen = JOB.observe(params, curves([1, 10, 100], **values), LIMITS)
    assert (seen["parameters"], seen["parameters_per_label"]) == (5.0, 0.25)
    assert (seen["best_test_loss"], seen["final_test_loss"]) == (0.4, 0.7)


def test_every_phase_and_headline_is_one_that_the_job_knows() -> None:
    seen = JOB.observe(RidgeParams(), curves([1]), LIMITS)
    assert set(JOB.headline) <= set(seen)
    assert len(set(JOB.phases)) == len(JOB.phases)


# Theory beside the measurement.

CASES: list[dict[str, Any]] = [
    {"sample_count": 30, "inputs": 60, "features": 15, "noise_variance": 0.5},
    {"sample_count": 30, "inputs": 60, "teacher": "equal"},
    {
        "sample_count": 10,
        "inputs": 30,
        "solver": "gradient_descent",
        "steps": 300,
        "curve_points": 9,
        "init_scale": 3.0,
        "weight_decay": 0.1,
    },
    {
        "sample_count": 30,
        "inputs": 10,
        "solver": "gradient_descent",
        "noise_variance": 1.0,
        "steps": 300,
        "curve_points": 9,
    },
    {
        "sample_count": 30,
        "inputs": 10,
        "features": 6,
        "solver": "gradient_descent",
        "noise_variance": 1.0,
        "steps": 300,
        "curve_points": 9,
        "covariance": "power_law",
    },
    {
        "design": "orthogonal",
        "sample_count": 30,
        "inputs": 10,
        "features": 6,
        "solver": "gradient_descent",
        "noise_variance": 1.0,
        "steps": 300,
        "curve_points": 9,
        "covariance": "two_scale",
        "small_features": 5,
        "small_scale": 0.2,
        "small_signal": 30.0,
        "init_scale": 1.0,
        "weight_decay": 0.01,
    },
]


@pytest.mark.parametrize("case", CASES)
def test_theory_agrees_with_the_measurement(case: dict[str, Any]) -> None:
    """The mean over 100 seeds within 4 of the standard errors that `Prediction` tells."""
    params, seeds = RidgeParams(**case), 100
    measured = curves_of(JOB, [Member(params=params, seed=seed) for seed in range(seeds)])
    predictions = JOB.theory(params)
    assert predictions
    for name, prediction in predictions.items():
        if prediction.step is not None:
            sample = np.array([measured[k].values[name] for k in range(seeds)])
            np.testing.assert_array_equal(prediction.step, measured[0].step)
        else:
            seen = [JOB.observe(params, measured[k], LIMITS)[name] for k in range(seeds)]
            sample = np.array(seen, dtype=np.float64)
        error = np.hypot(sample.std(axis=0, ddof=1) / math.sqrt(seeds), prediction.standard_error)
        assert not isinstance(prediction.value, Censored)
        assert (np.abs(sample.mean(axis=0) - prediction.value) <= 4 * error + 1e-12).all(), name


def test_the_predicted_phases_are_the_measured_ones() -> None:
    settings = [
        RidgeParams(**LEVELS, weight_decay=decay, init_scale=scale)
        for decay in (1e-4, 0.01, 1.0, 10.0)
        for scale in (0.1, 5.0)
    ]
    measured = curves_of(JOB, [Member(params=p, seed=4) for p in settings])
    labels = [label(p, measured[k]) for k, p in enumerate(settings)]
    predicted = []
    for params in settings:
        values = {name: p.value for name, p in JOB.theory(params).items() if p.step is None}
        predicted.append(JOB.phase(params, values, LIMITS))  # type: ignore[arg-type]
    assert predicted == labels
    assert {"comprehension", "memorization", "inversion", "confusion"} <= set(labels)


@pytest.mark.parametrize("design", ["relu", "fourier"])
def test_without_a_closed_form_there_is_no_prediction(design: str) -> None:
    assert JOB.theory(RidgeParams(design=design)) == {}
    assert "excess_risk" not in JOB.theory(RidgeParams(covariance="power_law", weight_decay=0.1))


def test_a_prediction_states_its_source() -> None:
    found = JOB.theory(RidgeParams(**LEVELS, weight_decay=0.1))
    assert found and all(isinstance(p, Prediction) and p.source for p in found.values())


def test_theory_needs_no_torch() -> None:
    code = (
        "import sys; from jobs.ridge.job import Ridge; from jobs.ridge.params import RidgeParams as P\n"
        "Ridge().theory(P()), Ridge().theory(P(solver='gradient_descent', train_level=.1, test_level=.1, steps=9))\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
