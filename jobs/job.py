"""The contract between a job (the science) and the orchestrator (the machine).

A job says what its parameters are, which trials can share tensors, what they cost, how a pack of
them trains, and how curves become observations and a phase. It knows nothing of Ray, MLflow or
Optuna. This module imports numpy and the standard library only, so that the driver can validate
and plan a sweep without loading torch; a job imports torch inside `train`.

Shapes: M models in a pack, K metrics, N report steps.
"""

from __future__ import annotations

import dataclasses
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar, cast, get_type_hints

import numpy as np
from numpy.typing import NDArray

Scalar = int | float | bool | str
"""What a parameter's value may be: plain data that YAML, JSON and MLflow all hold."""


class JobNotFound(LookupError):
    """The text of a sweep file names no job: why, and what would."""


class ParamError(ValueError):
    """A parameter breaks a rule: its name, the rule, the value given, the valid choices."""

    def __init__(self, name: str, rule: str, value: object, choices: Sequence[object] = ()) -> None:
        self.name, self.rule, self.value, self.choices = name, rule, value, tuple(choices)
        text = f"{name}: {rule}; got {value!r}"
        super().__init__(text + (f"; valid: {', '.join(map(str, choices))}" if choices else ""))


@dataclass(frozen=True, kw_only=True)
class ParamSpec:
    """What one parameter may be. `low`/`high` are inclusive, `above`/`below` exclusive."""

    name: str
    type: type
    default: Any
    """`dataclasses.MISSING` where the parameter has no default."""
    meaning: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Scalar, ...] = ()
    added: bool = False
    """Came after the job's first release: not part of a trial's identity where it has its default."""

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    def describe_range(self) -> str:
        """The valid values in words, for messages and help."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        if self.type is bool:
            return "true or false"
        if self.type is str:
            return "text"
        kind = "whole number" if self.type is int else "number"
        left = f">= {self.low:g}" if self.low is not None else f"> {self.above:g}" if self.above is not None else ""
        right = f"<= {self.high:g}" if self.high is not None else f"< {self.below:g}" if self.below is not None else ""
        return " ".join(part for part in (kind, " and ".join(p for p in (left, right) if p)) if part)

    def check(self, value: Any) -> Scalar:
        """The value in the parameter's own type.

        An int is accepted for a float, and a float without a fraction for an int.

        Raises:
            ParamError: the type is wrong, the value is not finite, or it is out of range.
        """
        typed = self._typed(value)
        if self.choices:
            if typed not in self.choices:
                raise ParamError(self.name, "not a valid choice", value, self.choices)
            return typed
        if isinstance(typed, (bool, str)):
            return typed
        if (
            not math.isfinite(typed)
            or (self.low is not None and typed < self.low)
            or (self.high is not None and typed > self.high)
            or (self.above is not None and typed <= self.above)
            or (self.below is not None and typed >= self.below)
        ):
            raise ParamError(self.name, f"must be a {self.describe_range()}", value)
        return typed

    def _typed(self, value: Any) -> Scalar:
        kind = self.type
        if type(value) is kind:
            return cast(Scalar, value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind is int and isinstance(value, float) and value.is_integer():
            return int(value)
        raise ParamError(self.name, f"must be a {self.describe_range()}", value)


def param(
    default: Any = dataclasses.MISSING,
    *,
    meaning: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[Scalar] = (),
    added: bool = False,
) -> Any:
    """A field of a `Params` class: its meaning, unit and range, checked at construction.

    An option that a later release adds is marked `added`, and its default must mean what the job did
    before: then every trial that was run without it stays the trial it was.
    """
    rules = {
        "meaning": meaning,
        "unit": unit,
        "low": low,
        "high": high,
        "above": above,
        "below": below,
        "choices": tuple(choices),
        "added": added,
    }
    return field(default=default, metadata={"param": rules})


@dataclass(frozen=True, kw_only=True)
class Params:
    """Base of a job's parameters (and of its thresholds): a frozen, keyword-only dataclass.

    Every field is made by `param` and is an int, a float, a bool or a str. Construction checks
    each field; a subclass adds rules that join fields by extending `__post_init__`.

    Raises:
        ParamError: a field breaks its rule.
    """

    def __post_init__(self) -> None:
        for name, spec in specs(type(self)).items():
            given = getattr(self, name)
            value = spec.check(given)
            if value is not given:
                object.__setattr__(self, name, value)


P = TypeVar("P", bound=Params)
AnyParams = Params
"""The same class, for use inside `Job`, where the name `Params` is the job's own."""


_SPECS: dict[type, Mapping[str, ParamSpec]] = {}


def specs(params_type: type[Params]) -> Mapping[str, ParamSpec]:
    """The parameters of a `Params` class, in the order they are declared."""
    known = _SPECS.get(params_type)
    if known is None:
        hints = get_type_hints(params_type)
        known = _SPECS[params_type] = {
            f.name: ParamSpec(name=f.name, type=hints[f.name], default=f.default, **f.metadata["param"])
            for f in dataclasses.fields(params_type)
        }
    return known


def params_from(params_type: type[P], values: Mapping[str, Any]) -> P:
    """Build a `Params` from plain data.

    Raises:
        ParamError: an unknown or a missing name, or a value that breaks its rule.
    """
    known = specs(params_type)
    for name in values:
        if name not in known:
            raise ParamError(name, "is not a parameter of this job", values[name], tuple(known))
    for name, spec in known.items():
        if spec.required and name not in values:
            raise ParamError(name, f"is required ({spec.meaning})", None)
    return params_type(**values)


def as_dict(params: Params) -> dict[str, Scalar]:
    """A `Params` as plain data, in the order of its fields."""
    return {name: getattr(params, name) for name in specs(type(params))}


def identity(params: Params) -> dict[str, Scalar]:
    """What of a `Params` makes a trial the trial it is: all but the added parameters that have their default."""
    known = specs(type(params))
    return {name: v for name, v in as_dict(params).items() if not (known[name].added and v == known[name].default)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Member(Generic[P]):
    """One model of a pack: a trial as the job sees it."""

    params: P
    seed: int
    """64-bit key of every random number of this trial (batches, noise, initialisation)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a pack has measured at one step. Positions count from 0 in the pack as it was given."""

    step: int
    """Optimiser steps done so far; 0 is the initial model."""
    members: NDArray[np.int64]
    """(m,) positions of the models measured."""
    values: Mapping[str, NDArray[np.float64]]
    """metric -> (m,) values; NaN and infinity are allowed and mean what they say."""
    finished: NDArray[np.int64]
    """Positions of the models that have finished with this report (diverged ones too)."""
    failed: Mapping[int, str] = field(default_factory=dict)
    """Position -> traceback, of models whose own code raised; they have finished too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """The whole measured course of one trial."""

    step: NDArray[np.int64]
    """(N,) increasing steps."""
    values: Mapping[str, NDArray[np.float64]]
    """metric -> (N,) values."""
    present: Mapping[str, NDArray[np.bool_]] | None = None
    """metric -> (N,) whether it was reported at the step; None: all were. What was not reads as NaN."""


@dataclass(frozen=True, slots=True)
class Censored:
    """Not reached within the trial's horizon: a bound, never a number."""

    at: float
    """The step (or other quantity) up to which it was not reached."""


Observations = Mapping[str, float | Censored]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a closed form says of one observation or one curve of a trial, to be drawn beside the measurement.

    It is the mean over the trial's seeds (the median of a step, where it may be censored). A measured mean m of R
    replicates with spread s deviates by (m - value) / sqrt(s^2 / R + standard_error^2) standard errors.
    """

    value: float | Censored | NDArray[np.float64]
    """One number, not reached, or (N,) values at `step`."""
    source: str
    """Paper and theorem, in a few words."""
    step: NDArray[np.int64] | None = None
    """(N,) steps of a curve; None: the prediction is of an observation."""
    standard_error: float | NDArray[np.float64] = 0.0
    """Of the prediction itself, where it was averaged over drawn data; 0 where it is exact."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one pack costs, in machine-independent counts (whole training, evaluations included)."""

    launches: float
    """Tensor operations launched, whatever their size (Python and dispatch overhead)."""
    matmul_flop: float
    """Floating-point operations of matrix products (2 per multiply-add), padding included."""
    element_visits: float
    """Elements read or written by all other operations."""
    memory_bytes: float
    """Peak resident memory of the pack beyond the data set."""
    seconds: float = 0.0
    """Time that is none of these (a plain function's own estimate)."""
    steps: int = 0
    """Optimiser steps of the whole training; 0: not said."""
    reports: int = 0
    """How often the models are measured in the whole training."""
    at_most: bool = False
    """Whether trials may end before the horizon by a criterion of the science: the counts are the most."""


class Job(ABC, Generic[P]):
    """The science of one kind of trial. Instances hold no state; one serves a whole sweep."""

    version: ClassVar[int] = 1
    """Part of a trial's identity: raise it when the same parameters no longer mean the same curve."""
    Params: ClassVar[type[AnyParams]]
    Thresholds: ClassVar[type[AnyParams]]
    """What the sweep file's `phases:` may set; never part of a trial's identity."""
    metrics: ClassVar[tuple[str, ...]]
    """Names of the curves, in the order they are recorded. Empty: whatever is reported."""
    phases: ClassVar[tuple[str, ...]]
    """Every label that `phase` can give, in the order a legend shows them."""
    headline: ClassVar[tuple[str, ...]] = ()
    """Observations worth a plot of their own, the most telling first."""
    open_params: ClassVar[bool] = False
    """Whether any parameter name is accepted (a plain function); `Params` is then made by `params_for`."""

    def params_for(self, values: Mapping[str, Any]) -> P:
        """The parameters that plain data stands for.

        Raises:
            ParamError: see `params_from`.
        """
        return params_from(self.Params, values)  # type: ignore[return-value]

    def report_steps(self, params: P) -> int:
        """How many steps of the trial's curves are recorded at most; 0 where it cannot be known."""
        return 0

    def shortened(self, params: P, *, steps: int, reports: int) -> P | None:
        """The same trial with a horizon of `steps` and about `reports` log-spaced reports, to be timed.

        None where that cannot be had. By default the parameters `steps` and `curve_points` say both (and
        `epochs`, where there is one, is 0: it would override `steps`); other names need another method.
        """
        names = specs(type(params))
        if not {"steps", "curve_points"} <= names.keys():
            return None
        changes = {"steps": steps, "curve_points": reports} | ({"epochs": 0} if "epochs" in names else {})
        try:
            return dataclasses.replace(params, **changes)
        except ParamError:
            return None

    def metrics_of(self, params: P) -> tuple[str, ...]:
        """The curves of a trial like this one, where an option adds some; the same for all trials of a pack."""
        return self.metrics

    @abstractmethod
    def pack_key(self, params: P) -> Hashable:
        """Trials with equal keys can share tensors (widths and other paddable extents aside)."""

    def extent(self, params: P) -> tuple[int, ...]:
        """Sizes that zero padding may raise without changing the trial, e.g. (width,)."""
        return ()

    @abstractmethod
    def cost(self, params: P, *, extent: tuple[int, ...], models: int) -> Cost:
        """The cost of a pack of `models` trials like `params`, each padded to `extent`."""

    @abstractmethod
    def train(self, pack: Sequence[Member[P]], *, device: str) -> Iterator[Report]:
        """Train all members; a member's curve is the same whatever its neighbours are.

        `device` is a torch device name. Reports come in increasing step; each member is named
        in `finished` exactly once.
        """

    @abstractmethod
    def observe(self, params: P, curves: Curves, thresholds: AnyParams) -> Observations:
        """Reduce a trial's curves to scalars; what was not reached is `Censored`."""

    @abstractmethod
    def phase(self, params: P, observations: Observations, thresholds: AnyParams) -> str:
        """The trial's label, one of `phases`."""

    def summarise(self, trials: Sequence[tuple[P, Observations]], thresholds: AnyParams) -> dict[str, float]:
        """Quantities of a whole sweep (e.g. the width at the test-error peak); none by default."""
        return {}

    def theory(self, params: P) -> Mapping[str, Prediction]:
        """What closed forms say of trials like this: observation or metric -> prediction; none by default."""
        return {}


LONGEST_METRIC_NAME = 250
_METRIC_NAME = re.compile(r"[\w.-][/\w. :-]*")


def is_metric_name(name: object, *, longest: int = LONGEST_METRIC_NAME) -> bool:
    """Whether the record (MLflow) takes this name for a metric or an observation.

    Letters, digits, "_", "-", ".", " ", ":" and "/", neither starting with "/", ":" or a space nor going up
    with "..", and no empty part between slashes.
    """
    if not isinstance(name, str) or len(name) > longest or not _METRIC_NAME.fullmatch(name):
        return False
    return ".." not in name.split("/") and "//" not in name


def log_spaced_steps(horizon: int, points: int) -> NDArray[np.int64]:
    """At most `points` distinct steps from 1 to `horizon`, evenly spaced in log, both ends included."""
    if points < 2 or horizon == 1:
        return np.array([horizon], dtype=np.int64)
    return np.unique(np.rint(np.geomspace(1, horizon, points)).astype(np.int64))
