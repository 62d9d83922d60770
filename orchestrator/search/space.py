"""Where a search looks: settings of a job as positions in unit boxes, one box for each slice of the sweep.

A slice holds what has no between: listed values, text, true and false, a value off its axis' scale (0 on a logarithmic
axis), and whether a conditional axis exists. Within a slice every range axis, or group of zipped ones, is one
coordinate from 0 to 1 in its own scale. Shapes: q positions, d coordinates.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jobs.job import Scalar
from orchestrator.axes import Axis, Scale, dimensions, expand

MOST_COORDINATES = 4
CELLS = 2**20
"""Positions along a continuous axis lie on a lattice of so many steps: exact in binary, finer than any boundary."""
MOST_DIGITS = 17
"""Decimal digits that tell any two floating-point numbers apart."""
_PLACEHOLDER = "\0between"

Floats = NDArray[np.float64]


class SpaceError(ValueError):
    """Axes that cannot be searched: the axis, and the rule it breaks."""

    def __init__(self, axis: str, rule: str, next_step: str) -> None:
        super().__init__(f"{axis}: {rule}")
        self.axis, self.rule, self.next_step = axis, rule, next_step


class Coordinate(ABC):
    """One side of the unit box."""

    names: tuple[str, ...]
    """The parameters that it sets."""
    size: int | None
    """How many positions it has; None where nobody would count them."""

    @abstractmethod
    def snap(self, u: Floats) -> Floats:
        """(q,) the nearest positions that a trial can have; positions outside the unit interval go to its ends."""

    @abstractmethod
    def values(self, u: float) -> tuple[Scalar, ...]:
        """The parameters' values at a snapped position."""

    @abstractmethod
    def position(self, values: Sequence[Scalar]) -> float:
        """The snapped position of these values: the inverse of `values`."""


def _log(value: float) -> float:
    return math.log(value)


@dataclass(frozen=True, kw_only=True)
class Continuous(Coordinate):
    """Any number from `low` (at 0) to `high` (at 1); `low` may be the larger one."""

    name: str
    low: float
    high: float
    log: bool = False

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The one parameter."""
        return (self.name,)

    @property
    def size(self) -> int | None:  # type: ignore[override]
        """Not counted, unless both ends are the same."""
        return 1 if self.low == self.high else None

    def snap(self, u: Floats) -> Floats:
        """To the lattice."""
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
            exact = math.exp(_log(self.low) * (1 - u) + _log(self.high) * u)
        else:
            exact = self.low * (1 - u) + self.high * u
        least, largest = min(self.low, self.high), max(self.low, self.high)
        for digits in range(2, MOST_DIGITS + 1):
            short = float(f"{exact:.{digits}g}")
            if least <= short <= largest and self.position((short,)) == u:
                return (short,)
        return (exact,)

    def position(self, values: Sequence[Scalar]) -> float:
        """The lattice position."""
        value = float(values[0])
        if self.low == self.high or value == self.low:
            return 0.0
        if self.log:
            share = (_log(value) - _log(self.low)) / (_log(self.high) - _log(self.low))
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
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The one parameter."""
        return (self.name,)

    @property
    def size(self) -> int | None:  # type: ignore[override]
        """How many whole numbers."""
        return (self.high - self.low) // self.step + 1

    def snap(self, u: Floats) -> Floats:
        """To the nearest whole number, in the axis' own scale."""
        if self.low == self.high:
            return np.zeros(len(u))
        u = np.clip(u, 0.0, 1.0)
        # A few numbers beside the one that the inverse gives: which of them is nearest, the scale says.
        base = self._number(u)
        near = [self._position(np.clip(base + offset * self.step, self.low, self._last)) for offset in (0, -1, 1)]
        best = np.argmin([np.abs(position - u) for position in near], axis=0)
        return np.asarray(np.choose(best, near), dtype=np.float64)

    @property
    def _last(self) -> int:
        return self.low + (self.high - self.low) // self.step * self.step

    def _number(self, u: Floats) -> Floats:
        if self.log:
            value = np.exp(_log(self.low) * (1 - u) + _log(self.high) * u)
        else:
            value = self.low * (1 - u) + self.high * u
        number = self.low + np.rint((value - self.low) / self.step) * self.step
        return np.asarray(np.clip(number, self.low, self._last), dtype=np.float64)

    def _position(self, number: Floats) -> Floats:
        if self.log:
            return np.asarray(np.log(number / self.low) / np.log(self.high / self.low), dtype=np.float64)
        return np.asarray((number - self.low) / (self.high - self.low), dtype=np.float64)

    def values(self, u: float) -> tuple[int]:
        """The whole number at this position."""
        return (self.low if self.low == self.high else int(self._number(np.array([u]))[0]),)

    def position(self, values: Sequence[Scalar]) -> float:
        """Exact where the number is one of the axis'."""
        if self.low == self.high:
            return 0.0
        return float(self._position(np.array([float(values[0])]))[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Listed(Coordinate):
    """The points of a grid: rows of values (zipped axes together), each at its place in the scale of one of them."""

    names: tuple[str, ...]
    rows: tuple[tuple[Scalar, ...], ...]
    at: Floats
    """(size,) position of each row, all different."""

    def __post_init__(self) -> None:
        order = np.argsort(self.at)
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_sorted", self.at[order])
        object.__setattr__(self, "_of_row", {row: float(u) for row, u in zip(self.rows, self.at, strict=True)})
        object.__setattr__(self, "_of_position", {float(u): row for row, u in zip(self.rows, self.at, strict=True)})

    @property
    def size(self) -> int | None:  # type: ignore[override]
        """How many rows."""
        return len(self.rows)

    def snap(self, u: Floats) -> Floats:
        """To the nearest row."""
        known: Floats = self._sorted  # type: ignore[attr-defined]
        right = np.clip(np.searchsorted(known, u), 1, max(1, len(known) - 1))
        if len(known) == 1:
            return np.full(len(u), known[0])
        before, after = known[right - 1], known[right]
        return np.asarray(np.where(u - before <= after - u, before, after), dtype=np.float64)

    def values(self, u: float) -> tuple[Scalar, ...]:
        """The row at this position."""
        found: tuple[Scalar, ...] | None = self._of_position.get(float(u))  # type: ignore[attr-defined]
        return found if found is not None else self.values(float(self.snap(np.array([u]))[0]))

    def position(self, values: Sequence[Scalar]) -> float:
        """Of a row of the grid.

        Raises:
            KeyError: it is none.
        """
        return float(self._of_row[tuple(values)])  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Together(Coordinate):
    """Zipped axes without points: each goes from its first to its last value as the leader does."""

    leader: Continuous | Whole
    """The one with the most values: it says where positions are."""
    others: tuple[Continuous | Whole, ...]

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The leader's first."""
        return (self.leader.name, *(other.name for other in self.others))

    @property
    def size(self) -> int | None:  # type: ignore[override]
        """As the leader's."""
        return self.leader.size

    def snap(self, u: Floats) -> Floats:
        """As the leader."""
        return self.leader.snap(u)

    def values(self, u: float) -> tuple[Scalar, ...]:
        """The others' values are the nearest to this position that they have."""
        at = np.array([u])
        return (*self.leader.values(u), *(other.values(float(other.snap(at)[0]))[0] for other in self.others))

    def position(self, values: Sequence[Scalar]) -> float:
        """The leader's."""
        return self.leader.position(values[:1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """One unit box, and the parameters that are the same all over it."""

    fixed: Mapping[str, Scalar]
    coordinates: tuple[Coordinate, ...]

    @property
    def size(self) -> int | None:
        """How many settings it has; None where nobody would count them."""
        sizes = [coordinate.size for coordinate in self.coordinates]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    @property
    def is_grid(self) -> bool:
        """Whether its settings are those of a grid: every axis has its points."""
        return all(isinstance(coordinate, Listed) for coordinate in self.coordinates)

    def snap(self, x: Floats) -> Floats:
        """(q, d) each position at the nearest one that a trial can have."""
        columns = [coordinate.snap(x[:, k]) for k, coordinate in enumerate(self.coordinates)]
        return np.stack(columns, axis=1) if columns else x.copy()

    def setting(self, x: Floats) -> dict[str, Scalar]:
        """The parameters at a snapped position (d,)."""
        found = dict(self.fixed)
        for u, coordinate in zip(x.tolist(), self.coordinates, strict=True):
            found.update(zip(coordinate.names, coordinate.values(u), strict=True))
        return found

    def position(self, setting: Mapping[str, Scalar]) -> Floats:
        """(d,) where a setting of this slice lies.

        Raises:
            KeyError: the setting lacks an axis, or is no point of the grid.
        """
        return np.array([c.position([setting[name] for name in c.names]) for c in self.coordinates], dtype=np.float64)

    def axis_index(self, name: str) -> int | None:
        """Which coordinate sets this parameter."""
        return next((k for k, coordinate in enumerate(self.coordinates) if name in coordinate.names), None)


def slices_of(axes: Sequence[Axis], fixed: Mapping[str, Scalar], defaults: Mapping[str, Scalar]) -> tuple[Slice, ...]:
    """The slices of a sweep, in the order in which a grid would come to them.

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
                    f"its condition is on '{name}', which a boundary search moves",
                    f"give '{name}' as a list of values, which is searched slice by slice",
                )
    groups: dict[str, tuple[Axis, ...]] = {}
    stand_ins: list[Axis] = []
    for group in dimensions(axes):
        if not searched & {axis.name for axis in group}:
            stand_ins.extend(group)
            continue
        special = _off_scale(group)
        # A searched group stands for itself by one text that no axis can have, and by its values off the scale.
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
        params: of the trial; those that are not in `names` say nothing.
        names: the parameters of the space: all that the trial has of them, its slice has too.
    """
    given = {name for name in params if name in names}
    for number, one in enumerate(slices):
        fixed = {name: value for name, value in one.fixed.items() if name in names}
        free = {name for coordinate in one.coordinates for name in coordinate.names}
        if given != free | fixed.keys() or any(params[name] != value for name, value in fixed.items()):
            continue
        try:
            return number, one.position(params)
        except (KeyError, ValueError):  # a value that is none of its grid, or off its scale
            continue
    return None


def _is_log(scale: Scale) -> bool:
    return scale in ("log", "integer")


def _off_scale(group: tuple[Axis, ...]) -> tuple[Scalar, ...]:
    """Values of a single axis that its scale has no place for."""
    if len(group) > 1 or not _is_log(group[0].scale):
        return ()
    return tuple(value for value in group[0].values if not float(value) > 0)


def coordinate_of(group: tuple[Axis, ...]) -> Coordinate:
    """The coordinate of an axis, or of axes that are zipped.

    Raises:
        SpaceError: zipped axes of which some have points and some have not, or none has a scale for all its values.
    """
    if any(axis.between for axis in group):
        if not all(axis.between for axis in group):
            without = next(axis.name for axis in group if axis.between)
            raise SpaceError(without, "axes that are zipped all have points, or all have none", "give it 'points'")
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
        return Listed(names=names, rows=rows, at=at)
    raise SpaceError(
        names[0],
        "zipped axes of a boundary search need one among them whose values are all on its scale",
        "leave out 0 and repeated values, or list the axes' values apart",
    )


def _between(axis: Axis) -> Continuous | Whole:
    low, high = axis.values[0], axis.values[-1]
    if isinstance(low, int) and isinstance(high, int):
        return Whole(name=axis.name, low=min(low, high), high=max(low, high), log=_is_log(axis.scale))
    return Continuous(name=axis.name, low=float(low), high=float(high), log=axis.scale == "log")
