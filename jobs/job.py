"""The contract between a job (the science) and the orchestrator (the machine).

A job defines its parameters, which trials can share tensors, what they cost, how a pack of them trains, and how curves
become observations and a phase. It does not depend on Ray, MLflow or Optuna. This module imports numpy and the standard
library only, so that the driver can validate and plan a sweep without loading torch; a job imports torch in `train`.

Shapes: M models in a pack, K metrics, N report steps.
"""

from __future__ import annotations

import dataclasses
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Any, ClassVar, Generic, TypeVar, cast, get_type_hints

import numpy as np
from numpy.typing import NDArray

from jobs.cautions import Caution
from jobs.state import TrialState

Scalar = int | float | bool | str
"""A parameter's value: plain data that YAML, JSON and MLflow can all hold."""

FINAL = "final_"
"""Before the name of a metric: the observation of its last value."""
BEST = "best_"
"""The same of its best value over the steps."""
LARGEST_STEP = 2**62
"""Databases hold steps, and timestamps made of them, as 64-bit integers."""


class JobNotFound(LookupError):
    """A name in a sweep file does not name a job; the message tells why.

    Args:
        text: the message.
        choices: valid names, where one of them may be meant.
        next_step: what to do; empty where it is to choose another name.
    """

    def __init__(self, text: str, *, choices: Sequence[str] = (), next_step: str = "") -> None:
        super().__init__(text)
        self.choices, self.next_step = tuple(choices), next_step


class ParamError(ValueError):
    """A parameter breaks a rule; the message has its name, the rule, the given value and the valid choices."""

    def __init__(
        self, name: str, rule: str, value: object, choices: Sequence[object] = (), *, next_step: str = ""
    ) -> None:
        self.name, self.rule, self.value, self.choices, self.next_step = name, rule, value, tuple(choices), next_step
        text = f"{name}: {rule}; got {value!r}"
        super().__init__(text + (f"; valid: {', '.join(map(str, choices))}" if choices else ""))


@dataclass(frozen=True, kw_only=True)
class ParamSpec:
    """One parameter's type and range. `low` and `high` are inclusive, `above` and `below` exclusive."""

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
    """Added after the job's first release: not part of a trial's identity where it has its default."""

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    def describe_range(self) -> str:
        """The valid values as text, for messages and help."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        if self.type is bool:
            return "true or false"
        if self.type is str:
            return "text"
        noun = "whole number" if self.type is int else "number"
        left = f">= {self.low:g}" if self.low is not None else f"> {self.above:g}" if self.above is not None else ""
        right = f"<= {self.high:g}" if self.high is not None else f"< {self.below:g}" if self.below is not None else ""
        return " ".join(part for part in (noun, " and ".join(p for p in (left, right) if p)) if part)

    def check(self, value: Any) -> Scalar:
        """The value in the parameter's type: an int becomes a float, and a float without a fraction an int.

        Raises:
            ParamError: the type is wrong, or the value is not finite or out of range.
        """
        typed = self._typed(value)
        if self.choices:
            if typed not in self.choices:
                raise ParamError(self.name, "not a valid choice", value, self.choices)
            return typed
        if isinstance(typed, (bool, str)):
            return typed
        if (
            not _is_finite(typed)
            or (self.low is not None and typed < self.low)
            or (self.high is not None and typed > self.high)
            or (self.above is not None and typed <= self.above)
            or (self.below is not None and typed >= self.below)
        ):
            raise ParamError(self.name, self._rule, value)
        return typed

    @property
    def _rule(self) -> str:
        article = "" if self.choices or self.type in (bool, str) else "a "
        return f"must be {article}{self.describe_range()}"

    def _typed(self, value: Any) -> Scalar:
        if type(value) is self.type:
            return cast(Scalar, value)
        if self.type is float and isinstance(value, int) and not isinstance(value, bool) and _is_finite(value):
            return float(value)
        if self.type is int and isinstance(value, float) and value.is_integer():
            return int(value)
        raise ParamError(self.name, self._rule, value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


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

    An option that a later release adds is marked `added`, and its default must be what the job did before: then
    trials that were run without it keep their identity.
    """
    rules = {"meaning": meaning, "unit": unit, "choices": tuple(choices), "added": added}
    bounds = {"low": low, "high": high, "above": above, "below": below}
    return field(default=default, metadata={"param": rules | bounds})


@dataclass(frozen=True, kw_only=True)
class Params:
    """Base of a job's parameters and of its thresholds: a frozen, keyword-only dataclass.

    Every field is made by `param` and is an int, a float, a bool or a str. Construction checks each field; a subclass
    adds rules that involve several fields by extending `__post_init__`.

    Raises:
        ParamError: a field breaks its rule.
    """

    def __post_init__(self) -> None:
        declared = _declared(type(self))
        for value, default, spec in zip(declared.values_of(self), declared.defaults, declared.rules, strict=True):
            if value is not default and (checked := spec.check(value)) is not value:
                object.__setattr__(self, spec.name, checked)


P = TypeVar("P", bound=Params)
AnyParams = Params
"""The same class, for use inside `Job`, where the name `Params` is the job's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Declared:
    """What a `Params` class declares, read once: a grid makes many instances."""

    specs: Mapping[str, ParamSpec]
    names: tuple[str, ...]
    rules: tuple[ParamSpec, ...]
    defaults: tuple[object, ...]
    """The default of each where it is valid as it is and need not be checked again; else `_NONE`."""
    added: tuple[object, ...]
    """The default of each that was added later; else `_NONE`."""
    required: tuple[str, ...]
    values_of: Callable[[Any], Sequence[Scalar]]
    """The values of an instance, in order."""


_DECLARED: dict[type, _Declared] = {}
_NONE = object()
"""Equal to no value."""


def _declared(params_type: type[Params]) -> _Declared:
    if params_type not in _DECLARED:
        hints = get_type_hints(params_type)
        known = {
            f.name: ParamSpec(name=f.name, type=hints[f.name], default=f.default, **f.metadata["param"])
            for f in dataclasses.fields(params_type)
        }
        _DECLARED[params_type] = _Declared(
            specs=known,
            names=tuple(known),
            rules=tuple(known.values()),
            defaults=tuple(map(_valid_default, known.values())),
            added=tuple(spec.default if spec.added else _NONE for spec in known.values()),
            required=tuple(name for name, spec in known.items() if spec.required),
            values_of=_getter(tuple(known)),
        )
    return _DECLARED[params_type]


def _valid_default(spec: ParamSpec) -> object:
    try:
        return spec.default if not spec.required and spec.check(spec.default) is spec.default else _NONE
    except ParamError:
        return _NONE


def _getter(names: tuple[str, ...]) -> Callable[[Any], Sequence[Scalar]]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda params: [getattr(params, name) for name in names]


def specs(params_type: type[Params]) -> Mapping[str, ParamSpec]:
    """The parameters of a `Params` class, in the order of their declaration."""
    return _declared(params_type).specs


def params_from(params_type: type[P], values: Mapping[str, Any]) -> P:
    """Build a `Params` from plain data.

    Raises:
        ParamError: a name is unknown or missing, or a value breaks its rule.
    """
    declared = _declared(params_type)
    known = declared.specs
    for name in values:
        if name not in known:
            raise ParamError(name, "is not a parameter of this job", values[name], tuple(known))
    for name in declared.required:
        if name not in values:
            raise ParamError(name, f"is required ({known[name].meaning})", None)
    return params_type(**values)


def as_dict(params: Params) -> dict[str, Scalar]:
    """A `Params` as plain data, in the order of its fields."""
    declared = _declared(type(params))
    return dict(zip(declared.names, declared.values_of(params), strict=True))


def identity(params: Params) -> dict[str, Scalar]:
    """The parameters that identify a trial: all but the added ones that have their default."""
    declared = _declared(type(params))
    items = zip(declared.names, declared.values_of(params), declared.added, strict=True)
    return {name: value for name, value, default in items if value is not default and value != default}


@dataclass(frozen=True, kw_only=True, slots=True)
class Member(Generic[P]):
    """One model of a pack: a trial as the job sees it."""

    params: P
    seed: int
    """64-bit key of every random number of this trial (batches, noise, initialisation)."""
    state: TrialState | None = None
    """Where the training continues, as an earlier `Report.state` of this trial gave it; None: it starts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a pack has measured at one step. Positions count from 0 in the pack as it was passed to `Job.train`.

    A report may have no measurements, such as one that only offers states.
    """

    step: int
    """Optimiser steps done so far; 0 is the initial model. At most `LARGEST_STEP`."""
    members: NDArray[np.int64]
    """(m,) positions of the models measured."""
    values: Mapping[str, NDArray[np.float64]]
    """metric -> (m,) values; NaN and infinity are allowed."""
    finished: NDArray[np.int64]
    """Positions of the models that finish with this report (diverged ones too)."""
    failed: Mapping[int, str] = field(default_factory=dict)
    """Position -> traceback, of models whose code raised an error; they are in `finished` too."""
    running: int | None = None
    """Position of the model that trains now, if the job trains one after another; None: all unfinished ones train."""
    unread: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Position -> the parameters that its code has not read, of finished models of which that is known."""
    state: Callable[[], Mapping[int, TrialState]] | None = None
    """Gives the states of unfinished models by position, to be called before the next report is asked for; its arrays
    are valid until then. None: the training cannot be saved here. A job that never gives one needs not read
    `Member.state`."""
    final: Callable[[], Mapping[int, TrialState]] | None = None
    """Gives the states of the models that end with this report because their training is as long as was asked for, and
    not by a criterion; to be called as `state`. A longer training continues from them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """All measurements of one trial."""

    step: NDArray[np.int64]
    """(N,) increasing steps."""
    values: Mapping[str, NDArray[np.float64]]
    """metric -> (N,) values."""
    present: Mapping[str, NDArray[np.bool_]] | None = None
    """metric -> (N,) whether it was reported at the step; None: all were. A value that was not reported is NaN."""


@dataclass(frozen=True, slots=True)
class Censored:
    """Not reached within the trial's horizon: a bound, not a number."""

    at: float
    """The step (or other quantity) up to which it was not reached."""


Observations = Mapping[str, float | Censored]

AFTER, BY = "_after", "_by"
"""A step that is known as well as a curve is measured has companions: the event `<name>` came in (`<name>_after`,
`<name>_by`], and in (`<name>_after`, `<name>`] where there is no `<name>_by`. Not of a censored step."""


def bounded(name: str, names: Container[str]) -> str:
    """The observation that `name` is a bound of, where it is one among `names`; "" if it is none."""
    for suffix in (AFTER, BY):
        if name.endswith(suffix) and (of := name.removesuffix(suffix)) in names:
            return of
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The value of one observation or one curve of a trial by a closed form, drawn beside the measurement.

    It is the mean over seeds (the median of a step, where that may be censored). A measured mean m of R replicates with
    standard deviation s deviates by (m - value) / sqrt(s^2 / R + standard_error^2) standard errors.
    """

    value: float | Censored | NDArray[np.float64]
    """One number, a censored one, or (N,) values at `step`."""
    source: str
    """Paper and theorem."""
    step: NDArray[np.int64] | None = None
    """(N,) steps of a curve; None: the prediction is of an observation."""
    standard_error: float | NDArray[np.float64] = 0.0
    """Of the prediction, where it is an average over drawn data; 0 where it is exact."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost of one pack in machine-independent counts: the whole training, evaluations included."""

    launches: float
    """Tensor operations launched, of any size (Python and dispatch overhead)."""
    matmul_flop: float
    """Floating-point operations of matrix products (2 per multiply-add), padding included."""
    element_visits: float
    """Elements read or written by all other operations."""
    memory_bytes: float
    """Peak bytes of the pack's tensors on a CPU; `Job.memory_bytes` is for other devices too."""
    seconds: float = 0.0
    """Further time (a plain function's own estimate)."""
    gpu_launches: float | None = None
    """Launches on a GPU, where a pack is not cut into blocks that fit a CPU's cache; None: as many as `launches`."""
    steps: int = 0
    """Optimiser steps of the whole training; 0: unknown."""
    reports: int = 0
    """How often the models are measured in the whole training."""
    at_most: bool = False
    """Whether trials may end before the horizon by a stopping criterion: the counts are upper bounds."""


class Job(ABC, Generic[P]):
    """The science of one kind of trial. Instances hold no state; one serves a whole sweep."""

    version: ClassVar[int] = 1
    """Part of a trial's identity: raise it when the same parameters no longer give the same curve."""
    Params: ClassVar[type[AnyParams]]
    Thresholds: ClassVar[type[AnyParams]]
    """What `phases:` in a sweep file may set; not part of a trial's identity."""
    metrics: ClassVar[tuple[str, ...]]
    """Names of the curves, in the order they are recorded. Empty: all that are reported."""
    phases: ClassVar[tuple[str, ...]]
    """Every label that `phase` can give, in the order a legend shows them."""
    one_by_one: ClassVar[bool] = False
    """Whether the models of a pack train one after another; `Report.running` names the one that does."""
    headline: ClassVar[tuple[str, ...]] = ()
    """Observations that get a plot of their own, the most informative first."""
    shares: ClassVar[tuple[str, ...]] = ()
    """Metrics that are from 0 to 1 in every trial, such as an accuracy: no other level is looked for."""
    retired: ClassVar[tuple[str, ...]] = ()
    """Observations that earlier versions recorded and this one makes only for searches that look for one of them
    (`observe_retired`); records keep them."""
    crossings: ClassVar[tuple[str, ...]] = ()
    """Observations that are the first report step at which something holds; `jobs.curves.crossing` makes them."""
    horizon_params: ClassVar[tuple[str, ...]] = ()
    """Parameters that say how long a trial trains and when its curves are measured, and nothing else: where all others
    are equal, a longer training begins with the shorter one. Empty: not known."""
    reporting_advice: ClassVar[str] = ""
    """What the user can do about a metric, `{metric}`, that trials do not report, besides correcting its name."""
    open_params: ClassVar[bool] = False
    """Whether any parameter name is accepted (a plain function); `Params` is then made by `params_for`."""

    def params_for(self, values: Mapping[str, Any]) -> P:
        """The trial's parameters from plain data; raises as `params_from`."""
        return params_from(self.Params, values)  # type: ignore[return-value]

    def schedule(self, params: P) -> NDArray[np.int64] | None:
        """The steps at which the trial's curves are recorded in any case, if it does not end early; None: unknown."""
        return None

    def report_steps(self, params: P) -> int:
        """The largest number of steps at which the trial's curves are recorded; 0: unknown."""
        steps = self.schedule(params)
        return 0 if steps is None else len(steps)

    def why_not_extended(self, shorter: P, longer: P) -> str:
        """Why a training cannot continue where a shorter one has ended; "" where it can, with the same curve."""
        if not self.horizon_params:
            return "the job does not state which parameters only make a training longer (`Job.horizon_params`)"
        ours, theirs = as_dict(longer), as_dict(shorter)
        others = [name for name in ours if ours[name] != theirs.get(name) and name not in self.horizon_params]
        if others:
            return f"the trials differ in {', '.join(others)}"
        early, late = self.schedule(shorter), self.schedule(longer)
        if early is None or late is None:
            return "the job does not state at which steps it reports (`Job.schedule`)"
        if late[-1] <= early[-1]:
            return f"it is not longer than {early[-1]} steps"
        if not np.array_equal(late[late <= early[-1]], early if early[-1] in late else early[:-1]):
            why = f"it reports at other steps than the training of {early[-1]} steps"
            if not {"curve_until", "curve_points"} <= theirs.keys():
                return why
            until, points = theirs["curve_until"] or early[-1], theirs["curve_points"]
            return f"{why}; `curve_until: {until}` and `curve_points: {points}` keep these and go on with their spacing"
        return ""

    def shortened(self, params: P, *, steps: int, reports: int) -> P | None:
        """The same trial with a horizon of `steps` and about `reports` log-spaced reports, for timing.

        None where that is not possible. The default sets the parameters `steps` and `curve_points`, and `epochs` and
        `curve_until` to 0 (they would override these); a job with other names overrides this method.
        """
        names = specs(type(params)).keys()
        changes = {"steps": steps, "curve_points": reports, "epochs": 0, "curve_until": 0}
        if not {"steps", "curve_points"} <= names:
            return None
        try:
            return dataclasses.replace(params, **{name: v for name, v in changes.items() if name in names})
        except ParamError:
            return None

    def metrics_of(self, params: P) -> tuple[str, ...]:
        """The curves of a trial, where an option adds some; the same for all trials of a pack."""
        return self.metrics

    def possible_metrics(self, params: P, *, measure: bool = False) -> Sequence[tuple[str, ...]]:
        """The sets of metrics one of which a trial reports, of a job that names no `metrics`.

        Empty, the default, where that is not known before it trains. `measure`: the job may train on a few examples.
        """
        return ()

    @abstractmethod
    def pack_key(self, params: P) -> Hashable:
        """Trials with equal keys can share tensors; they may differ in `extent`."""

    def extent(self, params: P) -> tuple[int, ...]:
        """Sizes that zero padding may increase without changing the trial, e.g. (width,)."""
        return ()

    @abstractmethod
    def cost(self, params: P, *, extent: tuple[int, ...], models: int) -> Cost:
        """The cost of a pack of `models` trials like `params`, each padded to `extent`."""

    def memory_bytes(self, params: P, *, extent: tuple[int, ...], models: int, device: str) -> float:
        """Peak bytes of the tensors of a pack of `models` trials like `params`, each padded to `extent`.

        The set-up, the training steps and the measurements are counted. By default, what `cost` states; a job that
        works in larger pieces on a GPU than on a CPU overrides it.
        """
        return self.cost(params, extent=extent, models=models).memory_bytes

    def remarks(self, params: Sequence[P], *, measure: bool = False) -> Sequence[str]:
        """Lines that `plan` and `verify-job` print about trials with these parameters; none by default.

        `measure`: for `check --rehearse`, which lets the job train for some seconds.
        """
        return ()

    @abstractmethod
    def train(self, pack: Sequence[Member[P]], *, device: str) -> Iterator[Report]:
        """Train all members; a member's curve does not depend on the other members.

        `device` is a torch device name. The reports of a member come in order of increasing step; each member is in
        `finished` of exactly one report. A member with a `state` continues there, and reports what comes after it; all
        members of a pack have states of the same step, or none.

        Raises:
            StateError: before the first report, a state does not fit its trial.
        """

    @abstractmethod
    def observe(self, params: P, curves: Curves, thresholds: AnyParams) -> Observations:
        """Reduce a trial's curves to scalars; what was not reached is `Censored`."""

    def observe_retired(self, params: P, curves: Curves, thresholds: AnyParams) -> Observations:
        """The `retired` observations of a trial; none by default."""
        return {}

    @abstractmethod
    def phase(self, params: P, observations: Observations, thresholds: AnyParams) -> str:
        """The trial's label, one of `phases`."""

    def labels(self, thresholds: AnyParams) -> tuple[str, ...]:
        """The labels that `phase` can give under these thresholds; by default all of `phases`."""
        return self.phases

    def label_names(self, thresholds: AnyParams) -> Mapping[str, str]:
        """What figures call the labels whose name alone does not say what they are; by default none."""
        return {}

    def labelled_by(self, thresholds: AnyParams) -> tuple[str, ...]:
        """The observation that a threshold names and that decides the phase, under every name that it may have.

        Empty, the default, where no threshold names one.
        """
        return ()

    def mark(self, params: P, observations: Observations, thresholds: AnyParams) -> str:
        """What a reader of a finished trial's label should know, such as that a level was reached and lost again.

        "", the default, where there is nothing to say.
        """
        return ""

    def completed(self, params: P, observations: Observations) -> Observations:
        """The observations of a trial, with the bounds of its steps where an earlier version recorded none.

        An earlier version's step is read as (previous report, step], by `schedule`. It stays as it is without a
        schedule, and in a curve of one report. The same mapping is returned if nothing is missing.
        """
        reached = {name: value for name in self.crossings if isinstance(value := observations.get(name), float)}
        lacking = [name for name in reached if name + AFTER not in observations]
        steps = self.schedule(params) if lacking else None
        if steps is None or len(steps) < 2:
            return observations
        return {**observations, **{name + AFTER: report_before(steps, reached[name]) for name in lacking}}

    def doubt(self, params: P, observations: Observations) -> str:
        """Why the recorded curve of a finished trial may be wrong, where an earlier version may have trained it.

        "", the default, where nothing is known against it.
        """
        return ""

    def analyses(self, thresholds: AnyParams) -> Sequence[Mapping[str, Scalar]]:
        """What is computed of a sweep whose file has no `analysis:`, as the file would write it; where it applies."""
        return ()

    def amount(self, params: P, name: str) -> float:
        """A numeric parameter as the amount that it stands for, where one value stands for another.

        The default is the parameter itself.
        """
        return float(getattr(params, name))

    def summarise(self, trials: Sequence[tuple[P, Observations]], thresholds: AnyParams) -> dict[str, float]:
        """Quantities of a whole sweep (e.g. the width at the test-error peak); none by default."""
        return {}

    def cautions(self, settings: Sequence[tuple[P, Observations | None]], thresholds: AnyParams) -> Sequence[Caution]:
        """What `plan` warns of, from these settings of a sweep: each with the observations of a finished trial.

        None stands for a setting that is to run. The default warns of nothing.
        """
        return ()

    def theory(self, params: P) -> Mapping[str, Prediction]:
        """Predictions of closed forms: observation or metric -> prediction; none by default."""
        return {}


LONGEST_METRIC_NAME = 250
_METRIC_NAME = re.compile(r"[\w.-][/\w. :-]*")


def is_metric_name(name: object, *, longest: int = LONGEST_METRIC_NAME) -> bool:
    """Whether a metric or an observation may have this name.

    It may contain letters, digits, "_", "-", ".", " ", ":" and "/". It must not start with "/", ":" or a space, and
    must contain neither "//" nor a part "..". An MLflow server refuses a few more names, such as "loss/"; records in
    databases may have them.
    """
    if not isinstance(name, str) or len(name) > longest or not _METRIC_NAME.fullmatch(name):
        return False
    return "//" not in name and ".." not in name.split("/")


@lru_cache(maxsize=256)
def log_spaced_steps(horizon: int, points: int, until: int = 0) -> NDArray[np.int64]:
    """At most `points` distinct steps from 1 to `horizon`, evenly spaced in the logarithm, both ends included.

    With `until`, so many lie between 1 and `until`, and the spacing goes on beyond it: those of a longer training begin
    with those of a shorter one.
    """
    if points < 2 or horizon == 1:
        steps = np.array([horizon], dtype=np.int64)
    else:
        until = until or horizon
        spaced = np.geomspace(1, until, points)
        if horizon > until > 1:
            further = math.floor((points - 1) * (math.log(horizon) / math.log(until) - 1) + 1e-9)
            spaced = np.append(spaced, until * until ** (np.arange(1, further + 1) / (points - 1)))
        steps = np.unique(np.append(np.rint(spaced).astype(np.int64), horizon))
        steps = steps[steps <= horizon]
    steps.setflags(write=False)
    return steps


def report_before(steps: NDArray[np.int64], step: float) -> float:
    """The last of increasing steps that is below `step`; 0, before the training, if there is none."""
    place = int(np.searchsorted(steps, step))
    return float(steps[place - 1]) if place else 0.0
