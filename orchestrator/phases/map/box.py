"""The box in which a classifier draws a phase map: the numeric axes from end to end, cut into slices by all the others.

Positions in the unit box run from 0 to 1 along each axis in its own scale (the logarithm, on a log axis). What has no
place on a scale (text, 0 on a log axis, an axis that does not exist for some trials) cannot be interpolated: each such
value is a slice of its own, with a classifier of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jobs.job import Scalar
from orchestrator.axes import Axis
from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.scale import AxisScale
from orchestrator.phases.text import is_number, words

FEWEST_VALUES = 3
"""A numeric axis with fewer values is not interpolated: each value is a slice."""
MOST_WHOLE = 100
"""An axis of whole numbers that is no longer has them as its values, where a search may choose among them."""


@dataclass(frozen=True, kw_only=True)
class BoxAxis:
    """One numeric axis, from end to end."""

    name: str
    label: str
    """Its name in words, with its unit."""
    kind: Literal["linear", "log"]
    low: float
    """Axis units."""
    high: float
    listed: tuple[float, ...] = ()
    """Its own values, in axis units and in order; empty where trials may lie anywhere between the ends."""

    def cuts(self, most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where at most so many panels cut the axis, and the bounds between the trials of one and of the next.

        Both are positions in the unit interval, (P,) and (P - 1,). The panels are at values of the axis, spread over
        it; where it has none, in the middle of equal parts, at a value with few digits.
        """
        middles = (np.arange(most) + 0.5) / most
        within = np.array([value for value in self.listed if self.low <= value <= self.high])
        if len(within) < 2:
            return np.array([self._rounded(float(at), 0.25 / most) for at in middles]), np.arange(1, most) / most
        units = self.unit(within)
        if len(units) > most:
            units = np.unique(units[np.abs(units - middles[:, None]).argmin(axis=1)])
        return units, (units[1:] + units[:-1]) / 2

    def _rounded(self, at: float, away: float) -> float:
        """The position nearest `at` whose value has the fewest digits, among those not farther `away`."""
        value = float(self.value(np.array(at)))
        for digits in range(1, 5):
            unit = float(self.unit(np.array(float(f"{value:.{digits}g}"))))
            if abs(unit - at) <= away:
                return unit
        return at

    @property
    def span(self) -> tuple[float, float]:
        """The ends in drawing positions: log10 on a log axis."""
        return (float(np.log10(self.low)), float(np.log10(self.high))) if self.kind == "log" else (self.low, self.high)

    def drawn(self, unit: NDArray[np.float64]) -> NDArray[np.float64]:
        """From the unit interval to drawing positions."""
        start, end = self.span
        return np.asarray(start + unit * (end - start), dtype=np.float64)

    def value(self, unit: NDArray[np.float64]) -> NDArray[np.float64]:
        """From the unit interval to axis units."""
        drawn = self.drawn(unit)
        return np.asarray(np.power(10.0, drawn) if self.kind == "log" else drawn, dtype=np.float64)

    def unit(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        """From axis units to the unit interval."""
        start, end = self.span
        drawn = np.log10(value) if self.kind == "log" else value
        return np.asarray((drawn - start) / (end - start), dtype=np.float64)

    @property
    def scale(self) -> AxisScale:
        """How it is drawn: its ends are those of the plot."""
        start, end = self.span
        middle = (start + end) / 2
        return AxisScale(
            name=self.name,
            label=self.label,
            kind=self.kind,
            values=(self.low, self.high),
            special=0,
            position=np.array([start, end]),
            low=np.array([start, middle]),
            high=np.array([middle, end]),
            continuous=True,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialSlice:
    """The trials that share every value that cannot be interpolated, and the axes along which they vary."""

    title: str
    """Those values in words; empty where there are none."""
    fixed: Mapping[str, Scalar | None]
    """Axis -> the value; None: the axis does not exist here."""
    axes: tuple[BoxAxis, ...]
    """(d,) in the order of the sweep file."""
    rows: NDArray[np.int64]
    """(n,) the trials, by their row of the table."""
    x: NDArray[np.float64] = field(repr=False)
    """(n, d) their positions in the unit box."""


def cut(diagram: PhaseDiagram, axes: Sequence[Axis], *, listed: bool = False) -> tuple[TrialSlice, ...]:
    """The slices of a sweep, in the order of its values.

    Args:
        diagram: every trial as a cell (nothing joined).
        axes: of the sweep; an axis runs from the smallest to the largest of its values and of its trials'.
        listed: whether every value of an axis that lists its values is a slice of its own.
    """
    by_name = {axis.name: axis for axis in axes}
    boxes = [_box_axis(scale, by_name.get(scale.name), listed) for scale in diagram.axes]
    codes = diagram.codes[diagram.cell]
    key = np.full(codes.shape, -1, dtype=np.int64)
    for a, (scale, box) in enumerate(zip(diagram.axes, boxes, strict=True)):
        apart = codes[:, a] < (scale.special if box is not None else len(scale.values))
        key[apart, a] = codes[apart, a]
    distinct, member = np.unique(key, axis=0, return_inverse=True) if key.size else (key[:1], np.zeros(len(key), int))
    slices = []
    for s, values in enumerate(distinct):
        rows = np.flatnonzero(member.reshape(-1) == s)
        free = [(a, box) for a, box in enumerate(boxes) if values[a] < 0 and box is not None]
        held = [(scale, int(v)) for scale, v in zip(diagram.axes, values, strict=True) if v >= 0]
        x = np.zeros((len(rows), len(free)))
        for column, (a, box) in enumerate(free):
            start, end = box.span
            x[:, column] = (diagram.axes[a].position[codes[rows, a]] - start) / (end - start)
        slices.append(
            TrialSlice(
                title=", ".join(f"{words(scale.name)} {scale.text(v)}" for scale, v in held),
                fixed={scale.name: scale.values[v] for scale, v in held},
                axes=tuple(box for _, box in free),
                rows=rows,
                x=x,
            )
        )
    return tuple(slices)


def _box_axis(scale: AxisScale, axis: Axis | None, listed: bool) -> BoxAxis | None:
    """The axis from end to end; None where each of its values is a slice."""
    if scale.kind == "category" or (listed and axis is not None and axis.scale == "values"):
        return None
    values = [*scale.values[scale.special :], *(axis.values if axis is not None else ())]
    placed = [float(v) for v in values if is_number(v) and (scale.kind != "log" or v > 0)]
    low, high = min(placed, default=0.0), max(placed, default=0.0)
    if len(set(placed)) < (2 if listed else FEWEST_VALUES):
        return None
    own = tuple(sorted(set(placed)))
    if axis is None or axis.between:
        whole = axis is not None and axis.scale == "integer" and high - low <= MOST_WHOLE
        own = tuple(float(value) for value in range(round(low), round(high) + 1)) if whole else ()
    return BoxAxis(name=scale.name, label=scale.label, kind=scale.kind, low=low, high=high, listed=own)
