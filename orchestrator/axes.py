"""Axes: how the sweep file writes them, the values they stand for, and the settings that their product makes.

A setting is a value for each parameter that a trial sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from jobs.job import Scalar

MOST_POINTS = 1_000_000
MOST_TRIALS = 2_000_000
"""All trials of a grid are held in the driver's memory; a larger grid is most likely a mistake."""
_LARGEST = 10**15
Scale = Literal["linear", "log", "integer", "values"]

ScalarValue = bool | int | float | str
"""`Scalar` as pydantic checks it: strictly, so that `true` is not a number."""


def key(default: Any = ..., meaning: str = "", valid: str = "", **rules: Any) -> Any:
    """A key of the sweep file: its default, its meaning, and its valid values in words for messages and editors."""
    return Field(default, description=f"{meaning} Valid: {valid}.", json_schema_extra={"x-valid": valid}, **rules)


class FileModel(BaseModel):
    """A mapping of the sweep file: no unknown keys, no conversions, immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


class _AxisModel(FileModel):
    when: dict[str, ScalarValue | list[ScalarValue]] = key(
        {},
        "The axis exists only where these parameters have this value, or one of these values.",
        "a mapping of parameter to value or list of values",
    )


class _Range(_AxisModel):
    points: int | None = key(
        None,
        "Number of points, both ends included; a boundary search without them looks anywhere in between.",
        f"a whole number from 1 to {MOST_POINTS}",
        ge=1,
        le=MOST_POINTS,
    )


_SPACED = "How the values are spaced."
_INCLUDE = "Further values (0 for instance), put in order among the others."


class LinearAxis(_Range):
    """Evenly spaced values."""

    scale: Literal["linear"] = key(..., _SPACED, "linear")
    start: float = key(..., "First value.", "a number", alias="from")
    to: float = key(..., "Last value.", "a number")
    include: list[float] = key([], "Further values, put in order among the others.", "a list of numbers")


class LogAxis(_Range):
    """Values with a constant ratio."""

    scale: Literal["log"] = key(..., _SPACED, "log")
    start: float = key(..., "First value.", "a number > 0", alias="from", gt=0)
    to: float = key(..., "Last value.", "a number > 0", gt=0)
    include: list[float] = key([], _INCLUDE, "a list of numbers")


class IntegerAxis(_Range):
    """Whole numbers with a roughly constant ratio; those that coincide are kept once."""

    scale: Literal["integer"] = key(..., _SPACED, "integer")
    start: int = key(..., "Smallest value.", "a whole number from 1 to 1e15", alias="from", ge=1, le=_LARGEST)
    to: int = key(..., "Largest value.", "a whole number from 1 to 1e15", ge=1, le=_LARGEST)
    include: list[int] = key([], _INCLUDE, "a list of whole numbers")


class ValuesAxis(_AxisModel):
    """The values themselves, in the order of the list."""

    scale: Literal["values"] = key("values", "The values are listed.", "values")
    values: list[ScalarValue] = key(
        ..., "The axis' values.", "a list of numbers, text, true or false; at least one", min_length=1
    )


RangeAxis = LinearAxis | LogAxis | IntegerAxis
AxisModel = RangeAxis | ValuesAxis
AXIS_MODELS: Mapping[str, type[AxisModel]] = {
    "linear": LinearAxis,
    "log": LogAxis,
    "integer": IntegerAxis,
    "values": ValuesAxis,
}


def axis_kind(written: Any) -> str | None:
    """Which of `AXIS_MODELS` (or "list") the file's value is meant to be; None where it does not say."""
    if isinstance(written, list):
        return "list"
    if isinstance(written, BaseModel):
        return str(getattr(written, "scale", ""))
    if not isinstance(written, Mapping):
        return None
    if "scale" in written:
        scale = written["scale"]
        return scale if isinstance(scale, str) and scale in AXIS_MODELS else None
    return "values" if "values" in written else None


AxisWritten = Annotated[
    Annotated[LinearAxis, Tag("linear")]
    | Annotated[LogAxis, Tag("log")]
    | Annotated[IntegerAxis, Tag("integer")]
    | Annotated[ValuesAxis, Tag("values")]
    | Annotated[list[ScalarValue], Tag("list"), Field(min_length=1, description="The axis' values.")],
    Discriminator(axis_kind),
]
"""An axis as the file writes it."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a sweep with its values."""

    name: str
    """The parameter that it varies."""
    scale: Scale
    values: tuple[Scalar, ...]
    """In order; distinct unless the axis is zipped with another."""
    when: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    """The axis exists only where each of these parameters has one of these values."""
    group: int | None = None
    """Axes with the same number advance together."""
    between: bool = False
    """Whether a search may choose any value between the two in `values`, which are then the ends of the range."""

    def exists(self, setting: Mapping[str, Scalar]) -> bool:
        """Whether the condition holds for these values of the other axes, fixed parameters and defaults."""
        return all(name in setting and setting[name] in among for name, among in self.when.items())


def same_on_every_machine(value: float) -> float:
    """A computed point, rounded to 12 significant digits.

    The last bits of a logarithm differ between processors, and a trial's id is the hash of its values: without
    rounding, a sweep resumed on another machine would find none of its finished trials.
    """
    return float(f"{value:.12g}")


def points_of(axis: AxisModel) -> list[Scalar]:
    """The values of an axis, not yet checked by the job; its two ends where it has no `points`.

    Linear and log axes keep their direction (they fall where `from` > `to`), and the values of `include` are sorted
    into them. Integers are `sorted(set(int(w) for w in geomspace(from, to, points)))`, computed so that rounding
    errors do not make 7 of 8.
    """
    if isinstance(axis, ValuesAxis):
        return list(axis.values)
    if axis.points is None:
        return [axis.start, axis.to]
    if isinstance(axis, IntegerAxis):
        spaced = np.geomspace(axis.start, axis.to, axis.points)
        return sorted({int(same_on_every_machine(float(w))) for w in spaced} | set(axis.include))
    if axis.start == axis.to:
        return sorted({axis.start, *axis.include})
    space = np.geomspace if isinstance(axis, LogAxis) else np.linspace
    with np.errstate(all="ignore"):  # a range too wide for a float gives infinities, which no job accepts
        computed = [same_on_every_machine(float(v)) for v in space(axis.start, axis.to, axis.points)]
    computed[0] = axis.start
    if len(computed) > 1:
        computed[-1] = axis.to
    falling = axis.start > axis.to
    return sorted({*computed, *axis.include}, reverse=falling) if axis.include else list(dict.fromkeys(computed))


class TooManyTrials(ValueError):
    """The axes stand for more than `MOST_TRIALS`: the argument is how many, as far as they were counted."""


class Cycle(ValueError):
    """The conditions of some axes depend on each other: the arguments are their names."""


def dimensions(axes: Sequence[Axis]) -> list[tuple[Axis, ...]]:
    """The factors of the grid: single axes and zipped groups, in the file's order.

    A dimension whose condition names another axis comes after that axis.

    Raises:
        Cycle: there is no such order.
    """
    groups: dict[object, list[Axis]] = {}
    for axis in axes:
        groups.setdefault(axis.name if axis.group is None else axis.group, []).append(axis)
    waiting = [tuple(group) for group in groups.values()]
    ordered: list[tuple[Axis, ...]] = []
    while waiting:
        unknown = {axis.name for dimension in waiting for axis in dimension}
        ready = next((d for d in waiting if not any(unknown & set(axis.when) for axis in d)), None)
        if ready is None:
            raise Cycle(*(axis.name for dimension in waiting for axis in dimension if unknown & set(axis.when)))
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def expand(
    axes: Sequence[Axis], fixed: Mapping[str, Scalar], defaults: Mapping[str, Scalar], *, replicates: int = 1
) -> tuple[list[dict[str, Scalar]], set[str]]:
    """Every setting of the grid, the last axis varying fastest, and the axes that exist in none of them.

    A setting holds the fixed parameters and the axes that exist there. Conditions also see the job's `defaults`.
    Zipped axes and conditions can make equal settings.

    Raises:
        Cycle: see `dimensions`.
        TooManyTrials: there are more than `MOST_TRIALS`, replicates counted.
    """
    ordered = dimensions(axes)
    certain = math.prod(len(d[0].values) for d in ordered if not any(axis.when for axis in d))
    if certain * replicates > MOST_TRIALS:
        raise TooManyTrials(certain * replicates)
    settings: list[dict[str, Scalar]] = [dict(fixed)]
    never = {axis.name for axis in axes}
    for dimension in ordered:
        shorter, settings = settings, []
        for setting in shorter:
            existing = [axis for axis in dimension if not axis.when or axis.exists({**defaults, **setting})]
            names = [axis.name for axis in existing]
            never.difference_update(names)
            rows = zip(*(axis.values for axis in existing), strict=True) if existing else [()]
            settings += [{**setting, **dict(zip(names, row, strict=True))} for row in rows]
            if len(settings) * replicates > MOST_TRIALS:
                raise TooManyTrials(len(settings) * replicates)
    return settings, never
