"""What a linear model is fitted to, and how, and its thresholds."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.job import ParamError, Params, param
from jobs.packed import fields

DESIGNS = ("gaussian", "orthogonal", "relu", "fourier", "linear_attention")
COVARIANCES = ("isotropic", "power_law", "two_scale")
TEACHERS = ("random", "equal", "power_law", "row_space")


@dataclass(frozen=True, kw_only=True)
class RidgeParams(Params):
    """What one linear model is fitted to, and how."""

    design: str = param(
        "gaussian",
        choices=DESIGNS,
        meaning="features: gaussian inputs; inputs whose sample covariance is exactly the population's (orthogonal); "
        "or random features of Gaussian inputs, sqrt(2) relu(w x) or sqrt(2) cos(w x + b); or those of one layer of "
        "linear attention that learns regression in context (jobs/ridge/attention.py): each example is a context",
    )
    sample_count: int = param(100, unit="examples", low=1, high=1_000_000, meaning="n: training examples")
    inputs: int = param(100, low=1, high=100_000, meaning="D: inputs that the targets depend on")
    features: int = param(
        0,
        low=0,
        high=100_000,
        meaning="p: features fitted: the first p inputs, or p random features; 0: as many as inputs, or all D (D + 1) "
        "of linear attention",
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
    steps: int = fields.steps(1000, meaning="steps of gradient descent")
    curve_points: int = fields.curve_points(100)
    curve_until: int = fields.curve_until()
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
    context_length: int = param(
        20, low=1, high=100_000, added=True, meaning="l: examples in a context beside the query (linear_attention)"
    )
    tasks: int = param(
        0, low=0, high=1_000_000, added=True, meaning="k: tasks of the contexts; 0: a fresh one each (linear_attention)"
    )

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
        if self.design == "linear_attention":
            if self.features:
                raise ParamError("features", f"must be 0 for design: {self.design}, which fits all", self.features)
            if self.teacher != "random":
                raise ParamError("teacher", f"must be random for design: {self.design}", self.teacher)
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
        if self.design == "linear_attention":
            return self.inputs * (self.inputs + 1)
        return self.features or self.inputs

    @property
    def drawn(self) -> int:
        """Numbers that are drawn for an example."""
        return self.inputs * (self.context_length + 1 if self.design == "linear_attention" else 1)

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
    prominence: float = fields.prominence()
