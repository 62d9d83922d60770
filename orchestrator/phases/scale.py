"""Where the values of an axis are drawn: positions, cell edges and ticks.

Positions are in one linear coordinate u: the value itself, its log10, or its rank for text and booleans. Values that
have no place on the scale (0 on a log axis; an axis that does not exist for some trials) get columns of their own
before the others, separated by a gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jobs.job import Scalar
from orchestrator.phases.text import number, value_text

Kind = Literal["linear", "log", "category"]
_GAP = 0.45
"""Width of the gap after a separate column, as a fraction of that column's width."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AxisScale:
    """An axis as drawn: V values, the S special ones first."""

    name: str
    label: str
    """Its name in words, with its unit."""
    kind: Kind
    values: tuple[Scalar | None, ...]
    """(V,) in drawing order; None: the axis does not exist for these trials."""
    special: int
    """S: how many of the first values have separate columns."""
    position: NDArray[np.float64]
    """(V,) where each value is drawn, in u."""
    low: NDArray[np.float64]
    """(V,) where its cell begins, in u."""
    high: NDArray[np.float64]
    """(V,) where its cell ends."""
    continuous: bool = False
    """Whether everything between the values is drawn too; ticks are then round numbers."""

    @property
    def numeric(self) -> bool:
        """Whether values between the given ones are meaningful."""
        return self.kind != "category"

    @property
    def span(self) -> tuple[float, float]:
        """The ends of the drawn axis, in u."""
        return float(self.low[0]), float(self.high[-1])

    def to_value(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions in u as values of the axis (ranks on a category axis)."""
        return np.power(10.0, u) if self.kind == "log" else u

    def to_position(self, value: float) -> float | None:
        """Where a value is drawn; None if it has no place on the scale."""
        if self.kind == "category" or (self.kind == "log" and value <= 0):
            return None
        return math.log10(value) if self.kind == "log" else float(value)

    def text(self, index: int) -> str:
        """A value as text."""
        return value_text(self.values[index])

    def edges(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(E + 1,) cell edges and the (E,) index of the value in each cell, -1 in a gap."""
        edges, index = [self.low[0]], []
        for i in range(len(self.values)):
            if i and self.low[i] > self.high[i - 1]:
                edges.append(self.low[i])
                index.append(-1)
            edges.append(self.high[i])
            index.append(i)
        return np.array(edges, dtype=np.float64), np.array(index, dtype=np.int64)

    def ticks(self, most: int = 9) -> tuple[list[float], list[str]]:
        """At most about `most` tick positions in u, with their texts; special values always have a tick."""
        at = [float(u) for u in self.position[: self.special]]
        texts = [self.text(i) for i in range(self.special)]
        rest = range(self.special, len(self.values))
        listed = len(rest) <= min(most, 6) and not self.continuous and all(map(_is_short, self.values[self.special :]))
        if self.kind == "category" or listed:
            stride = max(1, math.ceil(len(rest) / max(most, 1)))
            if self.kind == "category" or self._apart(rest, most):
                at += [float(self.position[i]) for i in rest][::stride]
                texts += [self.text(i) for i in rest][::stride]
                return at, texts
        low, high = self.to_value(np.array([self.low[self.special], self.high[-1]]))
        values = round_values(float(low), float(high), most, log=self.kind == "log")
        at += [math.log10(v) if self.kind == "log" else v for v in values]
        return at, [*texts, *map(number, values)]

    def minor_ticks(self) -> list[float]:
        """Positions in u of the unlabelled ticks of a log axis: 1 to 9 times each power of ten."""
        from matplotlib.ticker import LogLocator

        if self.kind != "log" or self.special == len(self.values):
            return []
        low, high = float(self.low[self.special]), float(self.high[-1])
        values = LogLocator(subs=range(1, 10), numticks=12).tick_values(10.0**low, 10.0**high)
        return [u for u in np.log10(values).tolist() if low <= u <= high]

    def _apart(self, rest: range, most: int) -> bool:
        """Whether the values are far enough apart for a tick each."""
        u = self.position[rest.start :]
        return len(u) < 2 or float(np.diff(u).min()) > 0.55 * float(u[-1] - u[0]) / most


def _is_short(value: Scalar | None) -> bool:
    """Whether a number has at most three digits that count, or is whole: 0.03981 makes no tick."""
    return not isinstance(value, float) or value.is_integer() or float(f"{value:.3g}") == value


def axis_scale(name: str, label: str, spacing: str, values: Iterable[Scalar | None]) -> AxisScale:
    """Lay out the distinct `values` of an axis; `spacing` is its `scale` in the sweep file.

    Text and booleans keep the order in which they are given; numbers are sorted.
    """
    distinct = list(dict.fromkeys(values))
    given = [v for v in distinct if v is not None]
    absent: list[Scalar | None] = [None] if len(given) < len(distinct) else []
    numbers = [v for v in given if not isinstance(v, (bool, str))]
    if len(numbers) < len(given) or not given:
        ordered: list[Scalar | None] = [*absent, *given]
        return _lay_out(name, label, "category", ordered, len(absent), np.arange(len(given), dtype=np.float64))
    numbers.sort()
    kind: Kind = "log" if _is_log(spacing, numbers) else "linear"
    apart: list[Scalar | None] = [v for v in numbers if kind == "log" and v <= 0]
    placed = [v for v in numbers if not (kind == "log" and v <= 0)]
    u = np.array(placed, dtype=np.float64)
    ordered = [*absent, *apart, *placed]
    return _lay_out(name, label, kind, ordered, len(absent) + len(apart), np.log10(u) if kind == "log" else u)


def _is_log(spacing: str, numbers: Sequence[float]) -> bool:
    positive = np.array([v for v in numbers if v > 0], dtype=np.float64)
    if len(positive) < 2:
        return False
    if spacing in ("log", "integer"):
        return True
    if spacing == "linear" or positive[-1] < 10 * positive[0]:
        return False
    # Explicit values are on a log axis if that spaces them more evenly.
    steps, ratios = np.diff(positive), np.diff(np.log(positive))
    return bool(ratios.std() * steps.mean() < steps.std() * ratios.mean())


def _lay_out(
    name: str, label: str, kind: Kind, values: list[Scalar | None], special: int, u: NDArray[np.float64]
) -> AxisScale:
    if len(u) > 1:
        middle = (u[1:] + u[:-1]) / 2
        low = np.concatenate([[u[0] - (middle[0] - u[0])], middle])
        high = np.concatenate([middle, [u[-1] + (u[-1] - middle[-1])]])
        width = max(float(np.median(high - low)), float(high[-1] - low[0]) / 40)
    else:
        width = 0.3 if kind == "log" else max(1.0, 0.2 * abs(float(u[0]))) if kind == "linear" and len(u) else 1.0
        low, high = u - width / 2, u + width / 2
    start = float(low[0]) if len(u) else 0.0
    first = start - special * width * (1 + _GAP) + np.arange(special) * width * (1 + _GAP)
    return AxisScale(
        name=name,
        label=label,
        kind=kind,
        values=tuple(values),
        special=special,
        position=np.concatenate([first + width / 2, u]),
        low=np.concatenate([first, low]),
        high=np.concatenate([first + width, high]),
    )


def round_values(low: float, high: float, most: int, *, log: bool = False) -> list[float]:
    """At most about `most` round values from `low` to `high`, for the ticks of a linear or log scale."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    slack = 1e-9 * (high - low)
    ends = (low * (1 - 1e-9), high * (1 + 1e-9)) if log else (low - slack, high + slack)

    def inside(values: Iterable[float]) -> list[float]:
        return [float(v) for v in values if ends[0] <= v <= ends[1]]

    # LogLocator labels whole decades, or every multiple: the finest division that leaves room for the labels is ours.
    for multiples in (range(1, 10), (1, 2, 5), (1, 3), (1,)) if log else ():
        values = inside(LogLocator(subs=multiples, numticks=most).tick_values(low, high))
        if 2 <= len(values) <= most:
            return values
    return inside(MaxNLocator(max(most - 1, 1), steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))[-most:] or [low]
