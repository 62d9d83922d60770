"""Linear models: least squares and ridge regression, by the minimum-norm solution or by gradient descent.

It is where the closed forms of `jobs.theory` hold, so where the machine is checked against mathematics. Double
descent: Hastie et al. 2019 (arXiv 1903.08560), Belkin, Hsu and Xu 2019 (arXiv 1903.07571), Belkin et al. 2019
(random features). Grokking: Liu, Michaud, Tegmark 2022 (arXiv 2210.01117) for large initialisation and weight decay.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jobs.curves import diverged, first_at_most
from jobs.double_descent.job import most_prominent_peak
from jobs.job import (
    AnyParams,
    Censored,
    Cost,
    Curves,
    Job,
    Member,
    Observations,
    ParamError,
    Params,
    Prediction,
    Report,
    as_dict,
    log_spaced_steps,
    param,
)

DESIGNS = ("gaussian", "orthogonal", "relu", "fourier")
COVARIANCES = ("isotropic", "power_law", "two_scale")
TEACHERS = ("random", "equal", "power_law", "row_space")


@dataclass(frozen=True, kw_only=True)
class RidgeParams(Params):
    """What one linear model is fitted to, and how."""

    design: str = param(
        "gaussian",
        choices=DESIGNS,
        meaning="features: gaussian inputs; inputs whose sample covariance is exactly the population's (orthogonal); "
        "or random features of Gaussian inputs, sqrt(2) relu(w x) or sqrt(2) cos(w x + b)",
    )
    sample_count: int = param(100, unit="examples", low=1, high=1_000_000, meaning="n: training examples")
    inputs: int = param(100, low=1, high=100_000, meaning="D: inputs that the targets depend on")
    features: int = param(
        0,
        low=0,
        high=100_000,
        meaning="p: features fitted: the first p inputs, or p random features; 0: as many as inputs",
    )
    frequency_scale: float = param(
        1.0, above=0, high=1e3, meaning="standard deviation of w x in the random features (fourier)"
    )
    covariance: str = param(
        "isotropic",
        choices=COVARIANCES,
        meaning="variances of the inputs: all 1; j^-covariance_exponent; or 1 and small_scale^2 for the last few",
    )
    covariance_exponent: float = param(1.0, low=0, high=10, meaning="decay of the inputs' variances (power_law)")
    small_features: int = param(0, low=0, high=100_000, meaning="inputs of small scale, the last ones (two_scale)")
    small_scale: float = param(1.0, above=0, high=1e3, meaning="their standard deviation (two_scale)")
    small_signal: float = param(0.0, low=0, high=1e9, meaning="squared norm of their coefficients (two_scale)")
    teacher: str = param(
        "random",
        choices=TEACHERS,
        meaning="true coefficients: uniformly random direction; all equal; proportional to j^(-teacher_exponent/2); "
        "random in the row space of the training inputs",
    )
    teacher_exponent: float = param(1.0, low=0, high=10, meaning="decay of the squared coefficients (power_law)")
    signal: float = param(1.0, above=0, high=1e9, meaning="squared norm of the true coefficients (two_scale: the rest)")
    noise_variance: float = param(0.0, low=0, high=1e9, meaning="variance of the targets' noise")
    solver: str = param(
        "min_norm",
        choices=("min_norm", "gradient_descent"),
        meaning="the solution itself (of least norm, where there are many), or full-batch gradient descent",
    )
    weight_decay: float = param(
        0.0, low=0, high=1e6, meaning="lam of the ridge penalty: mean squared error / 2 + lam / 2 |theta|^2"
    )
    learning_rate: float = param(0.1, unit="1/step", above=0, high=1e6, meaning="of gradient descent, constant")
    init_scale: float = param(0.0, low=0, high=1e6, meaning="norm of the initial coefficients (gradient_descent)")
    steps: int = param(1000, unit="steps", low=1, high=100_000_000, meaning="steps of gradient descent")
    curve_points: int = param(100, low=2, high=320, meaning="log-spaced steps at which the curves are measured")
    train_level: float = param(
        0.0,
        low=0,
        below=1,
        meaning="training loss relative to the zero model's, whose first step at or below is recorded exactly; 0: none",
    )
    test_level: float = param(
        0.0, low=0, below=1, meaning="the same of the excess risk relative to the zero model's; 0: none"
    )
    stop_at_levels: bool = param(False, meaning="end a trial once both levels have been reached")
    precision: str = param("float64", choices=("float64", "float32"), meaning="numbers that are computed with")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.design in ("gaussian", "orthogonal"):
            if self.features > self.inputs:
                raise ParamError("features", f"must be at most inputs ({self.inputs}), which they are", self.features)
        else:
            if self.covariance != "isotropic":
                raise ParamError("covariance", f"must be isotropic for design: {self.design}", self.covariance)
            if self.teacher == "row_space":
                raise ParamError("teacher", f"is for inputs fitted as they are, not design: {self.design}", "row_space")
        if self.design == "orthogonal" and self.sample_count < self.inputs:
            raise ParamError(
                "sample_count", f"must be at least inputs ({self.inputs}) to be orthogonal", self.sample_count
            )
        if self.teacher == "row_space" and self.fitted != self.inputs:
            raise ParamError("features", "must be 0 (all inputs) for teacher: row_space", self.features)
        two_scale = self.covariance == "two_scale"
        if two_scale != bool(self.small_features):
            raise ParamError(
                "small_features", "must be > 0 for covariance: two_scale, and only there", self.small_features
            )
        if self.small_features >= self.inputs:
            raise ParamError("small_features", f"must be below inputs ({self.inputs})", self.small_features)
        if two_scale and self.teacher == "row_space":
            raise ParamError("teacher", "has one norm; two_scale has two", self.teacher, TEACHERS[:-1])
        if self.stop_at_levels and not (self.train_level and self.test_level):
            raise ParamError("stop_at_levels", "needs train_level and test_level", True)

    @property
    def fitted(self) -> int:
        """p: features that are fitted."""
        return self.features or self.inputs

    @property
    def iterative(self) -> bool:
        """Whether the model is trained by gradient descent."""
        return self.solver == "gradient_descent"

    @property
    def horizon(self) -> int:
        """Steps of the whole training; the solution itself takes one."""
        return self.steps if self.iterative else 1


@dataclass(frozen=True, kw_only=True)
class RidgeThresholds(Params):
    """Where one phase ends and the next begins."""

    interpolated_loss: float = param(
        1e-6, low=0, below=1, meaning="training loss, relative to the zero model's, at which the data are interpolated"
    )
    grokking_gap: float = param(
        1000.0,
        unit="steps",
        above=0,
        meaning="steps from train_level to test_level from which on it is grokking (Liu et al. 2022)",
    )
    prominence: float = param(
        0.01, low=0, meaning="how far a peak of the test loss stands above the minima on both sides, to be one"
    )


class Ridge(Job[RidgeParams]):
    """Population risk against samples, features and steps; the four phases where levels are set."""

    Params: ClassVar[type[AnyParams]] = RidgeParams
    Thresholds: ClassVar[type[AnyParams]] = RidgeThresholds
    metrics: ClassVar[tuple[str, ...]] = (
        "train_loss",
        "test_loss",
        "excess_risk",
        "relative_train_loss",
        "weight_norm",
        "effective_parameters",
        "train_level_step",
        "test_level_step",
    )
    phases: ClassVar[tuple[str, ...]] = (
        "comprehension",
        "grokking",
        "memorization",
        "confusion",
        "inversion",
        "underparameterised",
        "overparameterised",
        "interpolating",
        "diverged",
    )
    headline: ClassVar[tuple[str, ...]] = ("final_test_loss", "test_level_step", "train_level_step")

    def pack_key(self, params: RidgeParams) -> Hashable:
        wide = params.iterative and params.fitted > params.sample_count
        levels = params.iterative and bool(params.train_level or params.test_level)
        stop = params.iterative and params.stop_at_levels
        return params.design, params.solver, params.precision, wide, levels, stop

    def extent(self, params: RidgeParams) -> tuple[int, ...]:
        return (params.sample_count, params.fitted)

    def report_steps(self, params: RidgeParams) -> int:
        return len(log_spaced_steps(params.horizon, params.curve_points))

    def cost(self, params: RidgeParams, *, extent: tuple[int, ...], models: int) -> Cost:
        from jobs.ridge import cost as ridge_cost

        return ridge_cost.pack_cost(params, extent=extent, models=models, reports=self.report_steps(params))

    def train(self, pack: Sequence[Member[RidgeParams]], *, device: str) -> Iterator[Report]:
        from jobs.ridge import pack as ridge_pack

        return ridge_pack.train(pack, device)

    def observe(self, params: RidgeParams, curves: Curves, thresholds: Any) -> Observations:
        return observe_curves(curves, thresholds)

    def phase(self, params: RidgeParams, observations: Observations, thresholds: Any) -> str:
        """Liu's table where both levels are set ("inversion": the test passes though training does not)."""
        if isinstance(observations["diverged_step"], float):
            return "diverged"
        if params.iterative and params.train_level and params.test_level:
            memorised = isinstance(observations["train_level_step"], float)
            if not isinstance(observations["test_level_step"], float):
                return "memorization" if memorised else "confusion"
            if not memorised:
                return "inversion"
            gap = observations["level_gap"]
            return "comprehension" if isinstance(gap, float) and gap < thresholds.grokking_gap else "grokking"
        final = observations["final_relative_train_loss"]
        if isinstance(final, float) and final <= thresholds.interpolated_loss:
            return "interpolating"
        return "underparameterised" if params.fitted < params.sample_count else "overparameterised"

    def summarise(self, trials: Sequence[tuple[RidgeParams, Observations]], thresholds: Any) -> dict[str, float]:
        """test_loss_peak_features and test_loss_peak_samples: where the median final test loss peaks."""
        results: dict[str, float] = {}
        for name, hidden in (("features", ("features", "inputs")), ("samples", ("sample_count",))):
            for label, (at, losses) in _along(trials, "fitted" if name == "features" else hidden[0], hidden).items():
                peak = most_prominent_peak(np.array(losses), thresholds.prominence)
                if peak is not None:
                    results[f"test_loss_peak_{name}{label}"] = float(at[peak])
        return results

    def theory(self, params: RidgeParams) -> Mapping[str, Prediction]:
        from jobs.ridge import theory as ridge_predictions

        return ridge_predictions.predict(params)


def observe_curves(curves: Curves, thresholds: RidgeThresholds) -> dict[str, float | Censored]:
    """Reduce a trial's curves.

    `test_loss_peak` is the most prominent interior maximum along the steps, with the minimum before and after it.
    The level steps are exact: the training itself looks at every step.
    """
    step, values = curves.step, curves.values
    horizon = float(step[-1]) if len(step) else 0.0
    bad = ~np.isfinite(values["train_loss"])
    seen: dict[str, float | Censored] = {
        "diverged_step": float(step[bad][0]) if diverged(values["train_loss"]) else Censored(horizon),
        "interpolation_step": first_at_most(step, values["relative_train_loss"], thresholds.interpolated_loss),
    }
    for name in ("train_level_step", "test_level_step"):
        last = values[name][-1] if len(step) else np.nan
        seen[name] = float(last) if np.isfinite(last) else Censored(horizon)
    train, test = seen["train_level_step"], seen["test_level_step"]
    seen["level_gap"] = Censored(horizon)
    if isinstance(train, float):
        seen["level_gap"] = test - train if isinstance(test, float) else Censored(horizon - train)
    for name in (
        "train_loss",
        "test_loss",
        "excess_risk",
        "relative_train_loss",
        "weight_norm",
        "effective_parameters",
    ):
        seen[f"final_{name}"] = float(values[name][-1]) if len(step) else Censored(0.0)
    test_loss = values["test_loss"]
    good = np.isfinite(test_loss)
    step, test_loss = step[good], test_loss[good]
    names = ("test_loss_peak", "test_loss_peak_step", "second_minimum_test_loss", "second_minimum_step")
    seen.update(dict.fromkeys((*names, "first_minimum_test_loss", "first_minimum_step"), Censored(horizon)))
    if not len(test_loss):
        return seen
    peak = most_prominent_peak(test_loss, thresholds.prominence)
    first = int(np.argmin(test_loss if peak is None else test_loss[:peak]))
    seen["first_minimum_test_loss"], seen["first_minimum_step"] = float(test_loss[first]), float(step[first])
    if peak is not None:
        second = peak + int(np.argmin(test_loss[peak:]))
        found = (test_loss[peak], step[peak], test_loss[second], step[second])
        seen.update({name: float(value) for name, value in zip(names, found, strict=True)})
    return seen


def _along(
    trials: Sequence[tuple[RidgeParams, Observations]], name: str, hidden: tuple[str, ...]
) -> Mapping[str, tuple[list[int], list[float]]]:
    """Median final test loss along `name`, for each setting of the parameters that are not `hidden`.

    The key names the setting by the parameters that vary; only curves of at least three points are kept.
    """
    settings = [{k: v for k, v in as_dict(p).items() if k not in hidden} for p, _ in trials]
    varying = [k for k in (settings[0] if settings else {}) if len({s[k] for s in settings}) > 1]
    groups: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (params, seen), setting in zip(trials, settings, strict=True):
        loss = seen.get("final_test_loss")
        if isinstance(loss, float) and np.isfinite(loss):
            groups["".join(f"/{k} {setting[k]}" for k in varying)][getattr(params, name)].append(loss)
    return {
        label: (sorted(points), [statistics.median(points[x]) for x in sorted(points)])
        for label, points in groups.items()
        if len(points) >= 3
    }
