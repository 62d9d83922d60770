"""What an axis of a sweep may be: how the file writes it, and the values it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from jobs.job import Scalar

MOST_POINTS = 1_000_000
_LARGEST = 10**15
Scale = Literal["linear", "log", "integer", "values"]

ScalarValue = bool | int | float | str
"""`Scalar` as pydantic checks it: strictly, so that `true` is no number."""


def key(default: Any = ..., *, meaning: str, valid: str, **rules: Any) -> Any:
    """A key of the sweep file: what it means, and its valid values in words for messages and editors."""
    return Field(default, description=f"{meaning} Valid: {valid}.", json_schema_extra={"x-valid": valid}, **rules)


class FileModel(BaseModel):
    """A mapping of the sweep file: no unknown keys, no conversions, immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


class _AxisModel(FileModel):
    when: dict[str, ScalarValue | list[ScalarValue]] = key(
        {},
        meaning="The axis exists only where these parameters have this value, or one of these values.",
        valid="a mapping of parameter to value or list of values",
    )


class _RangeAxis(_AxisModel):
    points: int | None = key(
        None,
        meaning="Number of points, both ends included; a boundary search without them looks anywhere in between.",
        valid=f"a whole number from 1 to {MOST_POINTS}",
        ge=1,
        le=MOST_POINTS,
    )


class LinearAxis(_RangeAxis):
    """Evenly spaced values."""

    scale: Literal["linear"] = key(meaning="How the values are spaced.", valid="linear")
    start: float = key(meaning="First value.", valid="a number", alias="from")
    to: float = key(meaning="Last value.", valid="a number")
    include: list[float] = key([], meaning="Further values, put in order among the others.", valid="a list of numbers")


class LogAxis(_RangeAxis):
    """Values with a constant ratio."""

    scale: Literal["log"] = key(meaning="How the values are spaced.", valid="log")
    start: float = key(meaning="First value.", valid="a number > 0", alias="from", gt=0)
    to: float = key(meaning="Last value.", valid="a number > 0", gt=0)
    include: list[float] = key(
        [], meaning="Further values (0 for instance), put in order among the others.", valid="a list of numbers"
    )


class IntegerAxis(_RangeAxis):
    """Whole numbers with a roughly constant ratio; those that coincide are kept once."""

    scale: Literal["integer"] = key(meaning="How the values are spaced.", valid="integer")
    start: int = key(meaning="Smallest value.", valid="a whole number from 1 to 1e15", alias="from", ge=1, le=_LARGEST)
    to: int = key(meaning="Largest value.", valid="a whole number from 1 to 1e15", ge=1, le=_LARGEST)
    include: list[int] = key(
        [], meaning="Further values (0 for instance), put in order among the others.", valid="a list of whole numbers"
    )


class ValuesAxis(_AxisModel):
    """The values themselves, in the order of the list."""

    scale: Literal["values"] = key("values", meaning="The values are listed.", valid="values")
    values: list[ScalarValue] = key(
        meaning="The axis' values.", valid="a list of numbers, text, true or false; at least one", min_length=1
    )


AxisModel = LinearAxis | LogAxis | IntegerAxis | ValuesAxis
AXIS_MODELS: Mapping[str, type[AxisModel]] = {
    "linear": LinearAxis,
    "log": LogAxis,
    "integer": IntegerAxis,
    "values": ValuesAxis,
}


def axis_kind(written: Any) -> str | None:
    """Which of `AXIS_MODELS` (or "list") something written in the file is meant to be, if it says so."""
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
    """One axis of a sweep, its values resolved."""

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
    """Whether a search may give it any value from the first to the last of `values`, which are then its two ends."""

    def exists(self, settings: Mapping[str, Scalar]) -> bool:
        """Whether the condition holds for these values (of the other axes, fixed ones and defaults)."""
        return all(name in settings and settings[name] in among for name, among in self.when.items())


def same_on_every_machine(value: float) -> float:
    """A computed point to 12 significant digits.

    The last bits of a logarithm differ between processors, and a trial's identity is the hash of its
    values: without this, a sweep resumed on another machine would find none of its finished trials.
    """
    return float(f"{value:.12g}")


def points_of(axis: AxisModel) -> list[Scalar]:
    """The values that an axis stands for, before the job has seen them; its two ends where it has no `points`.

    Linear and log keep their direction (from a large to a small value they fall); `include` is sorted
    in among them. Integers are `sorted(set(int(w) for w in geomspace(from, to, points)))`, where a point that
    is a whole number but for rounding is that number (8, not 7.999...).
    """
    if isinstance(axis, ValuesAxis):
        return list(axis.values)
    if axis.points is None:
        return [axis.start, axis.to]
    if isinstance(axis, IntegerAxis):
        computed_integers = np.geomspace(axis.start, axis.to, axis.points)
        return sorted({int(same_on_every_machine(float(w))) for w in computed_integers} | set(axis.include))
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
