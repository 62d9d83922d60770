"""A user's plain function as a job: `train(params, seed, device, report)`, which knows nothing of packs.

    def train(params, seed, device, report):
        rng = random.Random(seed)
        for step in range(1, params["steps"] + 1):
            ...
            report(step, loss=loss)
        return {"accuracy": accuracy}

`params` is a dict of plain data, whatever the sweep file names; or, where the first argument is
annotated with a subclass of `jobs.job.Params`, an instance of it: its names and ranges then check
the sweep file. `report` takes an increasing step and any metrics. The dict that the function may
return is recorded with its last report. A function whose meaning has changed says so by an
attribute, `train.version = 2`, so that older trials are not taken for new ones.
"""

from __future__ import annotations

import dataclasses
import inspect
import keyword
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import FunctionType, SimpleNamespace
from typing import Any, ClassVar, get_type_hints

import numpy as np

from jobs.catalogue import JobNotFound
from jobs.function_thread import END_S, Course
from jobs.job import (
    Censored,
    Cost,
    Curves,
    Job,
    Member,
    Observations,
    ParamError,
    Report,
    as_dict,
    param,
)
from jobs.job import Params as ParamsBase

_SIGNATURE = "train(params, seed, device, report)"


@dataclass(frozen=True, kw_only=True)
class OpenParams(ParamsBase):
    """Parameters of a function that declares none: any names, each value of its own type."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open_params, (as_dict(self),)


@cache
def _open_type(names: tuple[str, ...], types: tuple[type, ...]) -> type[OpenParams]:
    fields = [(name, kind, param(meaning="parameter of the function")) for name, kind in zip(names, types, strict=True)]
    # The types are kept as objects: `get_type_hints` has no names to look up.
    return dataclasses.make_dataclass("OpenParams", fields, bases=(OpenParams,), frozen=True, kw_only=True)


def open_params(values: Mapping[str, Any]) -> OpenParams:
    """Parameters with exactly these names, each of its value's own type.

    Raises:
        ParamError: a name that is no Python name, or a value that is not a finite number, true/false or text.
    """
    names, types = tuple(values), tuple(map(type, values.values()))
    for name, kind in zip(names, types, strict=True):
        if kind not in (int, float, bool, str):
            raise ParamError(name, "must be a number, true, false or text", values[name])
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("__"):
            raise ParamError(name, "is not a name that Python accepts for a parameter", values[name])
    return _open_type(names, types)(**values)


@dataclass(frozen=True, kw_only=True)
class FunctionThresholds(ParamsBase):
    """How a function's trials are labelled."""

    metric: str = param("", meaning="metric whose final value gives the phase; empty: all trials are 'finished'")
    level: float = param(0.0, meaning="final value from which on a trial is 'at or above'")


class FunctionJob(Job[Any]):
    """Wraps `train(params, seed, device, report)`; the members of a pack train one after another."""

    Params: ClassVar[type[ParamsBase]] = OpenParams
    Thresholds: ClassVar[type[ParamsBase]] = FunctionThresholds
    metrics: ClassVar[tuple[str, ...]] = ()
    phases: ClassVar[tuple[str, ...]] = ("below", "at or above", "finished", "not reported", "diverged")
    needs_torch: ClassVar[bool] = False
    """A worker need not import torch for it; the function's own module imports what it uses."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Raises:
        JobNotFound: the function does not take these arguments, or its annotation cannot serve.
        """
        self.function = function
        declared = _declared_params(function)
        # One class serves every function, so what differs among them belongs to the instance.
        self.__dict__.update(
            open_params=declared is None,
            Params=OpenParams if declared is None else declared,
            version=_version(function),
        )

    def params_for(self, values: Mapping[str, Any]) -> ParamsBase:
        return open_params(values) if self.open_params else super().params_for(values)

    def pack_key(self, params: ParamsBase) -> Hashable:
        return ()

    def cost(self, params: ParamsBase, *, extent: tuple[int, ...], models: int) -> Cost:
        return Cost(launches=0.0, matmul_flop=0.0, element_visits=0.0, memory_bytes=0.0)

    def train(self, pack: Sequence[Member[Any]], *, device: str) -> Iterator[Report]:
        """Reports of the members, one member after another; within each, in increasing step.

        A member's last report is held until the function reports again or returns, because what
        it returns is recorded at the same step.
        """
        course = Course(self.function, pack, device, self.open_params)
        thread = threading.Thread(target=course.run, name="phasefront function", daemon=True)
        thread.start()
        try:
            while not course.over:
                course.wait()
                yield from course.drain()
        finally:
            course.stop()
            thread.join(END_S)

    def observe(self, params: ParamsBase, curves: Curves, thresholds: Any) -> Observations:
        """`final_<metric>`: the value last reported, for each metric."""
        last = {name: _last_reported(curves, name) for name in curves.values}
        seen: dict[str, float | Censored] = {f"final_{name}": v for name, v in last.items() if v is not None}
        return seen

    def phase(self, params: ParamsBase, observations: Observations, thresholds: Any) -> str:
        """By the watched metric's final value; "diverged" where it, or with none watched any, is not finite."""
        finals = {name: value for name, value in observations.items() if isinstance(value, float)}
        if not thresholds.metric:
            return "finished" if all(map(np.isfinite, finals.values())) else "diverged"
        value = finals.get(f"final_{thresholds.metric}")
        if value is None:
            return "not reported"
        if not np.isfinite(value):
            return "diverged"
        return "at or above" if value >= thresholds.level else "below"


def _last_reported(curves: Curves, name: str) -> float | None:
    values = curves.values[name]
    if curves.present is not None:
        reported = curves.present[name]
    else:
        # What was not reported reads as NaN; but a row exists because something was.
        nothing = np.logical_and.reduce([np.isnan(column) for column in curves.values.values()])
        reported = ~np.isnan(values) | nothing
    rows = np.flatnonzero(reported)
    return float(values[rows[-1]]) if len(rows) else None


def _declared_params(function: Callable[..., Any]) -> type[ParamsBase] | None:
    """The `Params` subclass that the first argument is annotated with; None where it takes plain data.

    Raises:
        JobNotFound: see `FunctionJob`.
    """
    name = f"function {getattr(function, '__qualname__', function)!r}"
    signature = inspect.signature(function)
    try:
        signature.bind(None, 0, "cpu", None)
    except TypeError:
        raise JobNotFound(f"{name} is no job: it must take {_SIGNATURE}; it takes {signature}") from None
    first = next(iter(signature.parameters.values()))
    hint = first.annotation
    if isinstance(hint, str) and isinstance(function, FunctionType):
        try:
            hint = get_type_hints(SimpleNamespace(__annotations__={"it": hint}), function.__globals__)["it"]
        except NameError as error:
            raise JobNotFound(
                f"{name}: the annotation {hint!r} of {first.name!r} names nothing that exists at run time ({error}); "
                "import it outside TYPE_CHECKING, or leave the annotation out"
            ) from error
    if inspect.isclass(hint) and issubclass(hint, ParamsBase):
        return hint if hint is not ParamsBase else None
    if dataclasses.is_dataclass(hint):
        raise JobNotFound(
            f"{name}: {first.name!r} is annotated with {hint!r}; a class of parameters must be a subclass of "
            "jobs.job.Params with fields made by jobs.job.param; or annotate it as dict"
        )
    return None


def _version(function: Callable[..., Any]) -> int:
    version = getattr(function, "version", 1)
    if type(version) is not int:
        raise JobNotFound(
            f"function {function.__qualname__!r}: its attribute version must be a whole number; got {version!r}"
        )
    return version
