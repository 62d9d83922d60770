"""The box in which a classifier draws a phase map: numeric axes from end to end, cut into slices by all the others.

Positions in the unit box run from 0 to 1 along each axis in its own scale (a log axis in its logarithm). What has no
place on a scale (text, 0 on a log axis, an axis that does not exist for some trials) is never between two values: each
such value is a slice of its own, with a classifier of its own.
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
from orchestrator.phases.text import words

FEWEST_VALUES = 3
"""A numeric axis with fewer values has no between that is worth a classifier: each value is a slice."""


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
    """The trials that share every value that has no between, and the axes that are left to them."""

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
        axes: of the sweep; an axis runs from the least to the largest of its values and of its trials'.
        listed: whether every value of an axis that lists its values is a slice of its own.
    """
    ends = {axis.name: [v for v in axis.values if _is_number(v)] for axis in axes}
    apart_by_name = {axis.name for axis in axes if listed and axis.scale == "values"}
    fewest = 2 if listed else FEWEST_VALUES
    boxes = [
        None if scale.name in apart_by_name else _box_axis(scale, ends.get(scale.name, []), fewest)
        for scale in diagram.axes
    ]
    codes = diagram.codes[diagram.cell]
    key = np.full(codes.shape, -1, dtype=np.int64)
    for a, (scale, box) in enumerate(zip(diagram.axes, boxes, strict=True)):
        apart = codes[:, a] < scale.special if box is not None else np.ones(len(codes), dtype=np.bool_)
        key[apart, a] = codes[apart, a]
    distinct, member = np.unique(key, axis=0, return_inverse=True) if key.size else (key[:1], np.zeros(len(key), int))
    member = member.reshape(-1)
    slices = []
    for s, values in enumerate(distinct):
        rows = np.flatnonzero(member == s)
        free = [(a, box) for a, box in enumerate(boxes) if values[a] < 0 and box is not None]
        fixed = {scale.name: scale.values[v] for scale, v in zip(diagram.axes, values, strict=True) if v >= 0}
        position = np.zeros((len(rows), len(free)))
        for column, (a, box) in enumerate(free):
            start, end = box.span
            position[:, column] = (diagram.axes[a].position[codes[rows, a]] - start) / (end - start)
        title = ", ".join(
            f"{words(scale.name)} {scale.text(int(v))}" for scale, v in zip(diagram.axes, values, strict=True) if v >= 0
        )
        slices.append(TrialSlice(title=title, fixed=fixed, axes=tuple(box for _, box in free), rows=rows, x=position))
    return tuple(slices)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _box_axis(scale: AxisScale, ends: Sequence[Scalar], fewest: int) -> BoxAxis | None:
    placed = [float(v) for v in (*scale.values[scale.special :], *ends) if v is not None and _is_number(v)]
    placed = [v for v in placed if scale.kind != "log" or v > 0]
    if scale.kind == "category" or len(set(placed)) < fewest:
        return None
    return BoxAxis(
        name=scale.name,
        label=scale.label,
        kind="log" if scale.kind == "log" else "linear",
        low=min(placed),
        high=max(placed),
    )
