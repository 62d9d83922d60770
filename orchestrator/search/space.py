"""The space of a search: settings of a job as positions in unit boxes, one box for each slice of the sweep.

A slice fixes what cannot be interpolated: listed values, text, true and false, a value off its axis's scale (0 on a
logarithmic axis), and whether a conditional axis exists. Within a slice every range axis, or group of zipped axes, is
one coordinate from 0 to 1 in its own scale. Shapes: q positions, d coordinates.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from jobs.job import Scalar
from orchestrator.axes import Axis, Scale, dimensions, expand

MOST_COORDINATES = 4
CELLS = 2**20
"""Steps of the lattice of positions along a continuous axis; a power of two, so that positions are exact in binary."""
MOST_DIGITS = 17
"""Decimal digits that distinguish any two floating-point numbers."""
_PLACEHOLDER = "\0between"

Floats = NDArray[np.float64]


class SpaceError(ValueError):
    """An axis that cannot be searched, and the rule that it breaks."""

    def __init__(self, axis: str, rule: str, next_step: str) -> None:
        super().__init__(f"{axis}: {rule}")
        self.axis, self.rule, self.next_step = axis, rule, next_step


class Coordinate(ABC):
    """One side of the unit box."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The parameters that it sets."""

    @property
    @abstractmethod
    def size(self) -> int | None:
        """How many positions it has; None for a continuous axis."""

    @abstractmethod
    def snap(self, u: Floats) -> Floats:
        """(q,) the nearest positions that a trial can have."""

    @abstractmethod
    def values(self, u: float) -> tuple[Scalar, ...]:
        """The parameters' values at a snapped position."""

    @abstractmethod
    def position(self, values: Sequence[Scalar]) -> float:
        """The snapped position of these values: the inverse of `values`."""


@dataclass(frozen=True, kw_only=True)
class Continuous(Coordinate):
    """Any number from `low` (at 0) to `high` (at 1); `low` may be the larger one."""

    name: str
    low: float
    high: float
    log: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def size(self) -> int | None:
        return 1 if self.low == self.high else None

    def snap(self, u: Floats) -> Floats:
        if self.low == self.high:
            return np.zeros(len(u))
        return np.asarray(np.rint(np.clip(u, 0.0, 1.0) * CELLS) / CELLS, dtype=np.float64)

    def values(self, u: float) -> tuple[float]:
        """The shortest decimal number that lies at this position."""
        if u <= 0.0 or self.low == self.high:
            return (self.low,)
        if u >= 1.0:
            return (self.high,)
        if self.log:
            exact = math.exp(math.log(self.low) * (1 - u) + math.log(self.high) * u)
        else:
            exact = self.low * (1 - u) + self.high * u
        least, largest = min(self.low, self.high), max(self.low, self.high)
        for digits in range(2, MOST_DIGITS + 1):
            short = float(f"{exact:.{digits}g}")
            if least <= short <= largest and self.position((short,)) == u:
                return (short,)
        return (exact,)

    def position(self, values: Sequence[Scalar]) -> float:
        value = float(values[0])
        if self.low == self.high or value == self.low:
            return 0.0
        if self.log:
            share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(min(max(share, 0.0), 1.0) * CELLS) / CELLS


@dataclass(frozen=True, kw_only=True)
class Whole(Coordinate):
    """Every `step`-th whole number from `low` to `high`."""

    name: str
    low: int
    high: int
    log: bool = False
    step: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def size(self) -> int | None:
        return (self.high - self.low) // self.step + 1

    def snap(self, u: Floats) -> Floats:
        if self.low == self.high:
            return np.zeros(len(u))
        u = np.clip(u, 0.0, 1.0)
        # Rounding in axis units need not give the nearest number in the axis's scale: compare with its neighbours.
        base = self._number(u)
        near = [self._position(np.clip(base + offset * self.step, self.low, self._last)) for offset in (0, -1, 1)]
        best = np.argmin([np.abs(position - u) for position in near], axis=0)
        return np.asarray(np.choose(best, near), dtype=np.float64)

    @property
    def _last(self) -> int:
        return self.low + (self.high - self.low) // self.step * self.step

    def _number(self, u: Floats) -> Floats:
        if self.log:
            value = np.exp(math.log(self.low) * (1 - u) + math.log(self.high) * u)
        else:
            value = self.low * (1 - u) + self.high * u
        number = self.low + np.rint((value - self.low) / self.step) * self.step
        return np.asarray(np.clip(number, self.low, self._last), dtype=np.float64)

    def _position(self, number: Floats) -> Floats:
        if self.log:
            return np.asarray(np.log(number / self.low) / np.log(self.high / self.low), dtype=np.float64)
        return np.asarray((number - self.low) / (self.high - self.low), dtype=np.float64)

    def values(self, u: float) -> tuple[int]:
        return (self.low if self.low == self.high else int(self._number(np.array([u]))[0]),)

    def position(self, values: Sequence[Scalar]) -> float:
        if self.low == self.high:
            return 0.0
        return float(self._position(np.array([float(values[0])]))[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Listed(Coordinate):
    """The points of a grid: rows of values, each at its position in the scale of one of the axes."""

    columns: tuple[str, ...]
    """The parameters of a row: one axis, or axes that are zipped."""
    rows: tuple[tuple[Scalar, ...], ...]
    at: Floats
    """(size,) position of each row, all different."""

    @property
    def names(self) -> tuple[str, ...]:
        return self.columns

    @property
    def size(self) -> int | None:
        return len(self.rows)

    @cached_property
    def _sorted(self) -> Floats:
        return np.sort(self.at)

    @cached_property
    def _of_row(self) -> dict[tuple[Scalar, ...], float]:
        return dict(zip(self.rows, self.at.tolist(), strict=True))

    @cached_property
    def _of_position(self) -> dict[float, tuple[Scalar, ...]]:
        return dict(zip(self.at.tolist(), self.rows, strict=True))

    def snap(self, u: Floats) -> Floats:
        known = self._sorted
        right = np.clip(np.searchsorted(known, u), 1, max(1, len(known) - 1))
        if len(known) == 1:
            return np.full(len(u), known[0])
        before, after = known[right - 1], known[right]
        return np.asarray(np.where(u - before <= after - u, before, after), dtype=np.float64)

    def values(self, u: float) -> tuple[Scalar, ...]:
        row = self._of_position.get(float(u))
        return row if row is not None else self.values(float(self.snap(np.array([u]))[0]))

    def position(self, values: Sequence[Scalar]) -> float:
        """The position of a row.

        Raises:
            KeyError: the values are not a row of the grid.
        """
        return self._of_row[tuple(values)]


@dataclass(frozen=True, kw_only=True)
class Together(Coordinate):
    """Zipped axes without points, which all move from their first to their last value together."""

    leader: Continuous | Whole
    """The axis with the most values, which defines the positions."""
    others: tuple[Continuous | Whole, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (self.leader.name, *(other.name for other in self.others))

    @property
    def size(self) -> int | None:
        return self.leader.size

    def snap(self, u: Floats) -> Floats:
        return self.leader.snap(u)

    def values(self, u: float) -> tuple[Scalar, ...]:
        """The leader's value, and the value of every other axis that is nearest to this position."""
        at = np.array([u])
        return (*self.leader.values(u), *(other.values(float(other.snap(at)[0]))[0] for other in self.others))

    def position(self, values: Sequence[Scalar]) -> float:
        return self.leader.position(values[:1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """One unit box, and the parameters that are constant in it."""

    fixed: Mapping[str, Scalar]
    coordinates: tuple[Coordinate, ...]

    @property
    def size(self) -> int | None:
        """How many settings it has; None where an axis is continuous."""
        sizes = [coordinate.size for coordinate in self.coordinates]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    @property
    def is_grid(self) -> bool:
        """Whether every axis has points."""
        return all(isinstance(coordinate, Listed) for coordinate in self.coordinates)

    def snap(self, x: Floats) -> Floats:
        """(q, d) the nearest positions that a trial can have."""
        columns = [coordinate.snap(x[:, k]) for k, coordinate in enumerate(self.coordinates)]
        return np.stack(columns, axis=1) if columns else x.copy()

    def setting(self, x: Floats) -> dict[str, Scalar]:
        """The parameters at a snapped position (d,)."""
        setting = dict(self.fixed)
        for u, coordinate in zip(x.tolist(), self.coordinates, strict=True):
            setting.update(zip(coordinate.names, coordinate.values(u), strict=True))
        return setting

    def position(self, setting: Mapping[str, Scalar]) -> Floats:
        """(d,) the position of a setting of this slice.

        Raises:
            KeyError: the setting lacks an axis, or is not a point of the grid.
        """
        return np.array([c.position([setting[name] for name in c.names]) for c in self.coordinates], dtype=np.float64)

    def axis_index(self, name: str) -> int | None:
        """The index of the coordinate that sets this parameter; None where there is none."""
        return next((k for k, coordinate in enumerate(self.coordinates) if name in coordinate.names), None)


def slices_of(axes: Sequence[Axis], fixed: Mapping[str, Scalar], defaults: Mapping[str, Scalar]) -> tuple[Slice, ...]:
    """The slices of a sweep, in the order of a grid.

    Args:
        axes: of the sweep.
        fixed: parameters that are the same in all trials.
        defaults: the job's own values, which conditions see.

    Raises:
        SpaceError: they cannot be searched.
        Cycle, TooManyTrials: as for a grid.
    """
    searched = {axis.name for axis in axes if axis.scale != "values"}
    for axis in axes:
        for name in axis.when:
            if name in searched:
                raise SpaceError(
                    axis.name,
                    f"its condition is on '{name}', which a boundary search varies",
                    f"give '{name}' as a list of values: each value is searched as a slice of its own",
                )
    groups: dict[str, tuple[Axis, ...]] = {}
    stand_ins: list[Axis] = []
    for group in dimensions(axes):
        if not searched & {axis.name for axis in group}:
            stand_ins.extend(group)
            continue
        special = _off_scale(group)
        # A searched group is expanded as one placeholder text that no axis can have, and its values off the scale.
        stand_ins.extend(replace(axis, values=(_PLACEHOLDER, *special), between=False) for axis in group)
        groups.update({axis.name: group for axis in group})
    settings, _ = expand(stand_ins, fixed, defaults)
    slices: list[Slice] = []
    seen: set[tuple[tuple[str, Scalar], ...]] = set()
    for setting in settings:
        identity = tuple(sorted(setting.items()))
        if identity in seen:
            continue
        seen.add(identity)
        here = [name for name, value in setting.items() if value == _PLACEHOLDER]
        boxes: dict[str, Coordinate] = {}
        for axis in axes:
            existing = tuple(member for member in groups.get(axis.name, ()) if member.name in here)
            if axis.name in here and existing[0].name not in boxes:
                boxes[existing[0].name] = coordinate_of(existing)
        same = {name: value for name, value in setting.items() if name not in here}
        slices.append(Slice(fixed=same, coordinates=tuple(boxes.values())))
    return tuple(slices)


def locate(slices: Sequence[Slice], params: Mapping[str, Scalar], names: Collection[str]) -> tuple[int, Floats] | None:
    """Slice and position of a trial; None where it lies in none.

    Args:
        slices: of the space.
        params: of the trial; those that are not in `names` are ignored.
        names: the parameters of the space; the trial and its slice must have the same ones of them.
    """
    given = {name for name in params if name in names}
    for number, slice_ in enumerate(slices):
        fixed = {name: value for name, value in slice_.fixed.items() if name in names}
        free = {name for coordinate in slice_.coordinates for name in coordinate.names}
        if given != free | fixed.keys() or any(params[name] != value for name, value in fixed.items()):
            continue
        try:
            return number, slice_.position(params)
        except (KeyError, ValueError):  # a value that is not in its grid, or off its scale
            continue
    return None


def setting_of(
    slices: Sequence[Slice], params: Mapping[str, Scalar], is_same: Callable[[Mapping[str, Scalar]], bool]
) -> Mapping[str, Scalar] | None:
    """The setting of a trial, without axes that do not exist there; None where it is not in the space.

    Args:
        slices: of the space.
        params: all parameters of the trial.
        is_same: whether a setting stands for this trial.
    """
    for slice_ in slices:
        if any(params.get(name) != value for name, value in slice_.fixed.items()):
            continue
        try:
            setting = slice_.setting(slice_.position(params))
        except (KeyError, ValueError):  # a value that is not in its grid, or off its scale
            continue
        if is_same(setting):
            return setting
    return None


def _is_log(scale: Scale) -> bool:
    return scale in ("log", "integer")


def _off_scale(group: tuple[Axis, ...]) -> tuple[Scalar, ...]:
    """Values of a single axis that are not on its scale, such as 0 on a logarithmic one."""
    if len(group) > 1 or not _is_log(group[0].scale):
        return ()
    return tuple(value for value in group[0].values if not float(value) > 0)


def coordinate_of(group: tuple[Axis, ...]) -> Coordinate:
    """The coordinate of an axis, or of axes that are zipped.

    Raises:
        SpaceError: only some of the zipped axes have points, or none of them has all its values on its scale.
    """
    if any(axis.between for axis in group):
        if not all(axis.between for axis in group):
            without = next(axis.name for axis in group if axis.between)
            raise SpaceError(without, "either all of the zipped axes have points, or none of them", "give it 'points'")
        members = sorted((_between(axis) for axis in group), key=lambda member: -(member.size or math.inf))
        return members[0] if len(members) == 1 else Together(leader=members[0], others=tuple(members[1:]))
    names = tuple(axis.name for axis in group)
    for axis in group:
        if axis.scale == "values":
            continue
        keep = [i for i, v in enumerate(axis.values) if not _is_log(axis.scale) or float(v) > 0]
        if len(group) > 1 and len(keep) < len(axis.values):
            continue
        scaled = np.array([float(axis.values[i]) for i in keep])
        scaled = np.log(scaled) if _is_log(axis.scale) else scaled
        if len(set(scaled.tolist())) < len(scaled):
            continue
        span = scaled.max() - scaled.min() if len(scaled) else 0.0
        at = (scaled - scaled.min()) / span if span > 0 else np.zeros(len(scaled))
        rows = tuple(tuple(member.values[i] for member in group) for i in keep)
        return Listed(columns=names, rows=rows, at=at)
    raise SpaceError(
        names[0],
        "one of the zipped axes of a boundary search must have distinct values that are all on its scale",
        "leave out 0 and repeated values, or do not zip the axes",
    )


def _between(axis: Axis) -> Continuous | Whole:
    low, high = axis.values[0], axis.values[-1]
    if isinstance(low, int) and isinstance(high, int):
        return Whole(name=axis.name, low=min(low, high), high=max(low, high), log=_is_log(axis.scale))
    return Continuous(name=axis.name, low=float(low), high=float(high), log=axis.scale == "log")
