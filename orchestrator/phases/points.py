"""Points with intervals in groups, as the figures of one quantity against another show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.job import Scalar
from orchestrator.phases.diagram import PhaseDiagram
from orchestrator.phases.layout import wants_log
from orchestrator.phases.scale import AxisScale, axis_scale
from orchestrator.phases.text import words

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class PointGroup:
    """P points that belong together, in the order of x."""

    title: str
    """"" if there is one group."""
    cells: NDArray[np.int64]
    """(P,) their cells of the diagram."""
    x: Floats
    x_low: Floats
    """(P,) of the interval of x; equal to x where it is the same in all replicates, -inf for one replicate."""
    x_high: Floats
    y: Floats
    low: Floats
    high: Floats
    count: NDArray[np.int64]
    """(P,) replicates."""
    marked: NDArray[np.bool_]
    """(P,) whether a point is marked; see `PointFigure.mark`."""
    more: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Further columns of the table."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PointFigure:
    """A figure of groups of points."""

    file: str
    """Name of its files, without the ending."""
    title: str
    x_name: str
    y_name: str
    diagram: PhaseDiagram
    groups: tuple[PointGroup, ...]
    lines: tuple[str, ...]
    """What it shows, in words."""
    mark: str = ""
    """What a marked point is; "" if none is marked."""
    zero: bool = False
    """Whether zero is drawn as a line."""

    @property
    def x_scale(self) -> AxisScale:
        """The axis of x, on which zero has a place of its own if the others are logarithmic."""
        x = np.unique(np.concatenate([group.x for group in self.groups] or [np.ones(1)]))
        log = wants_log(self.x_name, x[x > 0]) and (x >= 0).all()
        return axis_scale(self.x_name, words(self.x_name), "log" if log else "linear", x.tolist())

    @property
    def y_log(self) -> bool:
        """Whether y is logarithmic."""
        return wants_log(self.y_name, np.concatenate([group.y for group in self.groups] or [np.ones(1)]))


def position(scale: AxisScale, values: Floats) -> Floats:
    """(P,) drawing positions of values; NaN where a value has no place between those of the scale."""
    own = {value: float(u) for value, u in zip(scale.values, scale.position, strict=True)}
    low, high = scale.span

    def of(value: float) -> float:
        if value in own:
            return own[value]
        at = scale.to_position(value) if np.isfinite(value) else None
        return np.nan if at is None else float(np.clip(at, low, high))

    return np.array([of(value) for value in values.tolist()], dtype=np.float64)


def grouping_axis(diagram: PhaseDiagram, without: Sequence[int] = ()) -> int | None:
    """The axis whose values are groups: the one with the fewest values, of at least two axes."""
    axes = [a for a in range(len(diagram.axes)) if a not in without]
    if not axes or (not without and len(axes) < 2):
        return None
    return min(axes, key=lambda a: (len(diagram.axes[a].values), -a))


def write_points(figure: PointFigure, path: Path) -> None:
    """Write a row per point as Parquet: the axes, x and y with their intervals, `replicates` and further columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {}
    for group in figure.groups:
        part: dict[str, Sequence[Any]] = {}
        for a, axis in enumerate(figure.diagram.axes):
            values: list[Scalar | None] = [axis.values[v] for v in figure.diagram.codes[group.cells, a]]
            part[axis.name] = [None if v is None else str(v) for v in values] if not axis.numeric else values
        part |= {"x": _finite(group.x), "x_low": _finite(group.x_low), "x_high": _finite(group.x_high)}
        part |= {"y": _finite(group.y), "y_low": _finite(group.low), "y_high": _finite(group.high)}
        part |= {"replicates": group.count.tolist(), **group.more}
        for name, own in part.items():
            columns.setdefault(name, []).extend(own)
    names = {"x": figure.x_name, "y": figure.y_name}
    table = pa.table(columns).replace_schema_metadata({f"phasefront.{k}": v for k, v in names.items()})
    pq.write_table(table, path, compression="zstd")


def _finite(values: Floats) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]
