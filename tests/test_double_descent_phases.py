"""Double descent: from curves to observations, from observations to phases, from trials to a summary."""

import math
from typing import Any

import numpy as np
import pytest

from jobs.double_descent.job import DoubleDescent
from jobs.double_descent.params import DoubleDescentParams, DoubleDescentThresholds
from jobs.job import Censored, Curves, Member, Observations
from tests.plain_mlp import network_of

JOB = DoubleDescent()
LIMITS = DoubleDescentThresholds()


def member(**changes: Any) -> Member[DoubleDescentParams]:
    return Member(params=DoubleDescentParams(**{"data": "gaussian_teacher", "pool": 60, **changes}), seed=5)


def curve(train_error: list[float], test_error: list[float], train_loss: list[float] | None = None) -> Curves:
    count = len(train_error)
    loss = train_loss or train_error
    columns = {"train_loss": loss, "train_error": train_error, "test_loss": test_error, "test_error": test_error}
    return Curves(
        step=10 ** np.arange(count, dtype=np.int64),
        values={name: np.array(values, dtype=np.float64) for name, values in columns.items()},
    )


def observed(*args: Any, **limits: Any) -> Observations:
    return JOB.observe(member().params, curve(*args), DoubleDescentThresholds(**limits))


def test_a_curve_has_its_interpolation_step_and_final_errors_and_claims_no_peak() -> None:
    """A bump of one curve was a peak from 0.01 on: in 8 of 8 trials on clean data, which have none."""
    seen = observed([0.9, 0.5, 0.3, 0.0, 0.0, 0.0], [0.9, 0.4, 0.42, 0.43, 0.3, 0.35])
    assert seen["interpolation_step"] == 1000.0
    assert set(JOB.retired) == {
        *("test_error_peak", "test_error_peak_step", "first_minimum_test_error", "first_minimum_step"),
        *("second_minimum_test_error", "second_minimum_step"),
    }
    assert not set(seen) & set(JOB.retired)
    assert (seen["final_train_error"], seen["final_test_error"]) == (0.0, 0.35)
    assert seen["diverged_step"] == Censored(100_000.0)
    assert JOB.phase(member().params, seen, LIMITS) == "interpolating"


def test_what_is_not_reached_is_censored_and_not_a_number() -> None:
    seen = observed([0.9, 0.6, 0.5], [0.9, 0.8, 0.7])
    assert seen["interpolation_step"] == Censored(100.0)
    assert JOB.phase(member().params, seen, LIMITS) == "underfitted"


def test_thresholds_move_the_numbers() -> None:
    errors, tests = [0.9, 0.2, 0.1, 0.05], [0.9, 0.4, 0.45, 0.2]
    assert observed(errors, tests)["interpolation_step"] == Censored(1000.0)
    assert observed(errors, tests, interpolated_error=0.1)["interpolation_step"] == 100.0
    assert observed(errors, tests, prominence=0.1) == observed(errors, tests), "of retired observations alone"


def retired(*args: Any, **limits: Any) -> Observations:
    return JOB.observe_retired(member().params, curve(*args), DoubleDescentThresholds(**limits))


def test_what_is_retired_is_what_earlier_versions_observed() -> None:
    """Values that these tests expected of `observe` then."""
    seen = retired([0.9, 0.5, 0.3, 0.0, 0.0, 0.0], [0.9, 0.4, 0.5, 0.7, 0.3, 0.35])
    assert tuple(seen) == JOB.retired
    assert (seen["first_minimum_test_error"], seen["first_minimum_step"]) == (0.4, 10.0)
    assert (seen["test_error_peak"], seen["test_error_peak_step"]) == (0.7, 1000.0)
    assert (seen["second_minimum_test_error"], seen["second_minimum_step"]) == (0.3, 10_000.0)
    never = retired([0.9, 0.6, 0.5], [0.9, 0.8, 0.7])
    for name in ("test_error_peak", "test_error_peak_step", "second_minimum_test_error", "second_minimum_step"):
        assert never[name] == Censored(100.0)
    assert (never["first_minimum_test_error"], never["first_minimum_step"]) == (0.7, 100.0)
    errors, tests = [0.9, 0.2, 0.1, 0.05], [0.9, 0.4, 0.45, 0.2]
    assert retired(errors, tests)["test_error_peak"] == 0.45
    assert retired(errors, tests, prominence=0.1)["test_error_peak"] == Censored(1000.0)


def test_the_best_error_is_not_the_last() -> None:
    seen = observed([0.9, 0.5, 0.3, 0.0], [0.9, 0.4, math.nan, 0.5])
    assert (seen["best_test_error"], seen["final_test_error"]) == (0.4, 0.5)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("data", ["gaussian_teacher", "gaussian_linear"])
def test_the_observed_parameters_are_those_of_pytorchs_network(depth: int, data: str) -> None:
    loss = "squared" if data == "gaussian_linear" else "cross_entropy"
    params = member(depth=depth, width=13, sample_count=20, data=data, loss=loss).params
    trained = sum(p.numel() for p in network_of(params, seed=1).parameters())
    seen = JOB.observe(params, curve([0.5], [0.5]), LIMITS)
    assert seen["parameters"] == trained
    assert seen["parameters_per_label"] == trained / (20 * (1 if data == "gaussian_linear" else 10))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_divergence_has_a_step_and_a_phase(bad: float) -> None:
    seen = observed([0.9, 0.0, 0.9], [0.9, 0.2, 0.9], [1.0, 0.01, bad])
    assert seen["diverged_step"] == 100.0
    assert seen["interpolation_step"] == 10.0
    assert JOB.phase(member().params, seen, LIMITS) == "diverged"


def test_every_phase_is_declared() -> None:
    assert {"interpolating", "underfitted", "diverged"} == set(JOB.phases)
    assert set(JOB.headline) <= set(observed([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]))


def final(train: float, test: float) -> Observations:
    return observed([0.9, train], [0.9, test])


def test_a_sweep_over_widths_has_its_threshold() -> None:
    """Medians over replicates: one outlier moves nothing."""
    errors = {2: (0.6, 0.50), 8: (0.3, 0.48), 32: (0.1, 0.52), 64: (0.005, 0.60), 128: (0.0, 0.5), 300: (0.0, 0.45)}
    trials = [
        (member(width=width).params, final(train + shift, test + shift))
        for width, (train, test) in errors.items()
        for shift in (0.0, 0.0, 0.3 if width == 8 else 0.0)
    ]
    found = JOB.summarise(trials, LIMITS)
    assert found["interpolation_width"] == 64.0
    assert set(found) == {"interpolation_width"}, "a peak and a complexity have intervals: see test_analyses"


def test_each_setting_of_the_other_axes_has_a_summary_of_its_own() -> None:
    trials = [
        (member(width=width, label_noise=noise).params, final(0.0 if width >= threshold else 0.5, 0.5))
        for noise, threshold in ((0.0, 8), (0.2, 64))
        for width in (2, 8, 32, 64)
    ]
    found = JOB.summarise(trials, LIMITS)
    assert sorted(value for name, value in found.items() if name.startswith("interpolation_width")) == [8.0, 64.0]
    assert any("label_noise" in name and "0.2" in name for name in found)


def test_a_sweep_that_never_interpolates_has_no_threshold() -> None:
    trials = [(member(width=w).params, final(0.2, 0.5)) for w in (2, 8, 32)]
    assert "interpolation_width" not in JOB.summarise(trials, LIMITS)
    assert JOB.summarise([], LIMITS) == {}


def test_a_sweep_over_samples_has_no_complexity_from_medians() -> None:
    """The median training error 0.05 of three replicates passed 0.1, although their mean does not."""
    trials = [
        (member(sample_count=n).params, final(error, 0.5))
        for n, errors in ((10, (0.0, 0.0, 0.0)), (20, (0.05, 0.05, 0.9)), (30, (0.4, 0.5, 0.6)))
        for error in errors
    ]
    assert JOB.summarise(trials, LIMITS) == {}
    (proposed,) = (dict(a) for a in JOB.analyses(DoubleDescentThresholds(emc_error=0.2)) if a["kind"] == "complexity")
    assert proposed["error"] == 0.2


def test_interpolation_is_from_a_width_on() -> None:
    """A lucky narrow network that fits is not the threshold if a wider one does not."""
    errors = [(2, 0.5), (4, 0.0), (8, 0.3), (16, 0.0), (32, 0.0)]
    found = JOB.summarise([(member(width=w).params, final(e, 0.5)) for w, e in errors], LIMITS)
    assert found["interpolation_width"] == 16.0
