"""A boundary as data: a Parquet file of vertices, and the same lines as GeoJSON, both in axis units.

`boundary.parquet` has one row per vertex: `line` (0, 1, ... along the file), `vertex` (0, 1, ... along the line),
`label_a`, `label_b` (the phases on its two sides; null for a ridge), one column per axis that was held (its value;
null where the axis does not exist there) and, for each of the two axes of the plane, `<axis>`, `<axis>_at_5` and
`<axis>_at_95`: where the boundary is, and the positions on its normal at which `label_a` has 5% and 95% of the belief
given these seeds (for a ridge: the 5% and 95% quantiles of the peak). `offset_5` and `offset_95` are the signed
distances of these two from the vertex, in box widths (each axis from end to end, in its own scale), along the normal in
that box. Null: the belief does not get there within the box. `<axis>_over_seeds_at_5`, `<axis>_over_seeds_at_95`,
`over_seeds_offset_5` and `over_seeds_offset_95` are the same of the band over seeds; null for a ridge, and where one
seed was run. An axis whose name another column has is written as `axis.<name>`.

`boundary.geojson` is a FeatureCollection of LineStrings with the same numbers; its coordinates are in axis units, not
longitude and latitude.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.job import Scalar
from orchestrator.phases.map.surface_map import (
    FittedMap,
    FittedSlice,
    Plane,
    held_positions,
    held_values,
    planes,
    ridge_of,
)
from orchestrator.phases.text import is_number
from orchestrator.surface.base import ClassSurface, RidgeSurface

_OWN = ("line", "vertex", "label_a", "label_b", "offset_5", "offset_95", "over_seeds_offset_5", "over_seeds_offset_95")
RIDGE_POINTS = 201
"""Vertices of the curve of a ridge."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BoundaryLine:
    """One polyline of P vertices in the plane of two axes."""

    labels: tuple[str, str] | None
    """The phases on its two sides; None for a ridge."""
    axes: tuple[str, str]
    """The names of the plane's axes."""
    fixed: Mapping[str, Scalar | None]
    """Axis -> value of what is held in this plane."""
    points: NDArray[np.float64]
    """(P, 2) axis units; a closed line ends where it began."""
    at_5: NDArray[np.float64]
    """(P, 2) axis units; NaN: see the module."""
    at_95: NDArray[np.float64]
    """(P, 2)"""
    offsets: NDArray[np.float64]
    """(P, 2) box widths: of `at_5` and of `at_95`."""
    over_at_5: NDArray[np.float64]
    """(P, 2) as `at_5`, of the band over seeds; NaN without one."""
    over_at_95: NDArray[np.float64]
    over_offsets: NDArray[np.float64]


def boundary_lines(map_: FittedMap, drawn: Mapping[int, Sequence[Plane]] | None = None) -> list[BoundaryLine]:
    """Every boundary (or ridge) of a map.

    Args:
        map_: the map.
        drawn: planes that exist already, by the index of the fitted slice; used where it has two axes.
    """
    lines: list[BoundaryLine] = []
    for s, part in enumerate(map_.fitted):
        ridge = ridge_of(part)
        if ridge is not None:
            lines += ridge_lines(part, ridge)
        elif isinstance(part.surface, ClassSurface):
            ready = (drawn or {}).get(s) if len(part.slice.axes) == 2 else None
            for plane in ready if ready is not None else planes(part, stack=True):
                lines += _lines_of(plane, map_.labels)
    return lines


def _lines_of(plane: Plane, labels: Sequence[str]) -> Iterator[BoundaryLine]:
    for line in plane.lines:
        points, at_5, at_95, over_5, over_95 = (
            np.column_stack([plane.x.value(p[:, 0]), plane.y.value(p[:, 1])])
            for p in (line.points, *line.ends(), *line.ends(over_seeds=True))
        )
        yield BoundaryLine(
            labels=(labels[line.a], labels[line.b]),
            axes=(plane.x.name, plane.y.name),
            fixed=plane.fixed,
            points=points,
            at_5=at_5,
            at_95=at_95,
            offsets=line.offsets,
            over_at_5=over_5,
            over_at_95=over_95,
            over_offsets=line.over_seeds,
        )


def ridge_lines(fitted: FittedSlice, ridge: RidgeSurface) -> list[BoundaryLine]:
    """The peak along its axis, over the first other axis, for some positions of the rest."""
    axes, along = fitted.slice.axes, ridge.along
    others = [a for a in range(len(axes)) if a != along]
    x, y = axes[others[0]], axes[along]
    over = np.linspace(0, 1, RIDGE_POINTS)
    lines = []
    for held, _ in ridge_cuts(fitted, ridge):
        at = np.column_stack([over, *(np.full(len(over), held[axis]) for axis in others[1:])])
        median, low, high = ridge.peak(at)
        points, at_5, at_95 = (np.column_stack([x.value(over), y.value(peak)]) for peak in (median, low, high))
        no_band = np.full_like(points, np.nan)
        lines.append(
            BoundaryLine(
                labels=None,
                axes=(x.name, y.name),
                fixed={**fitted.slice.fixed, **held_values(axes, held)},
                points=points,
                at_5=at_5,
                at_95=at_95,
                offsets=np.column_stack([low - median, high - median]),
                over_at_5=no_band,
                over_at_95=no_band,
                over_offsets=no_band,
            )
        )
    return lines


def ridge_cuts(fitted: FittedSlice, ridge: RidgeSurface) -> list[tuple[dict[int, float], NDArray[np.int64]]]:
    """Where the axes of a ridge that are not drawn are cut, and the trials of each part; see `held_positions`."""
    axes = fitted.slice.axes
    first, *others = (a for a in range(len(axes)) if a != ridge.along)
    order = [first, ridge.along, *others]
    cuts = held_positions(fitted.evidence.x[:, order], [axes[a] for a in order], most=9)
    return [({order[k]: at for k, at in held.items()}, near) for held, near in cuts]


def write_parquet(lines: Sequence[BoundaryLine], path: Path) -> None:
    """Write the vertices (see the module for the columns)."""
    import pyarrow.parquet as pq

    pq.write_table(arrow_table(lines), path, compression="zstd")


def arrow_table(lines: Sequence[BoundaryLine]) -> Any:
    """The vertices as a `pyarrow.Table` (see the module for the columns)."""
    import pyarrow as pa

    used = list(dict.fromkeys(name for line in lines for name in line.axes))
    names = list(dict.fromkeys([*used, *(name for line in lines for name in line.fixed)]))
    taken = {*_OWN, *(f"{name}_{band}at_{p}" for name in used for band in ("", "over_seeds_") for p in (5, 95))}
    column = {name: f"axis.{name}" if name in taken else name for name in names}

    def each(values: Iterable[Any], kind: Any = None) -> Any:
        return pa.array([v for v, line in zip(values, lines, strict=True) for _ in line.points], kind)

    def numbers(parts: Sequence[NDArray[np.float64]]) -> Any:
        values = np.concatenate(parts) if parts else np.zeros(0)
        return pa.array(values, pa.float64(), mask=np.isnan(values))

    arrays: dict[str, Any] = {
        "line": each(range(len(lines)), pa.int64()),
        "vertex": pa.array([i for line in lines for i in range(len(line.points))], pa.int64()),
        "label_a": each([line.labels[0] if line.labels else None for line in lines], pa.string()),
        "label_b": each([line.labels[1] if line.labels else None for line in lines], pa.string()),
    }
    for name in names:
        if name in used:
            arrays[column[name]] = numbers([_along(line, name, line.points) for line in lines])
            arrays[f"{column[name]}_at_5"] = numbers([_along(line, name, line.at_5) for line in lines])
            arrays[f"{column[name]}_at_95"] = numbers([_along(line, name, line.at_95) for line in lines])
            arrays[f"{column[name]}_over_seeds_at_5"] = numbers([_along(line, name, line.over_at_5) for line in lines])
            arrays[f"{column[name]}_over_seeds_at_95"] = numbers(
                [_along(line, name, line.over_at_95) for line in lines]
            )
        else:
            values = [line.fixed.get(name) for line in lines]
            mixed = len({float if is_number(v) else type(v) for v in values if v is not None}) > 1
            arrays[column[name]] = each([None if v is None else str(v) for v in values] if mixed else values)
    arrays["offset_5"] = numbers([line.offsets[:, 0] for line in lines])
    arrays["offset_95"] = numbers([line.offsets[:, 1] for line in lines])
    arrays["over_seeds_offset_5"] = numbers([line.over_offsets[:, 0] for line in lines])
    arrays["over_seeds_offset_95"] = numbers([line.over_offsets[:, 1] for line in lines])
    meta = {"columns": column, "lines": [{"axes": line.axes, "fixed": dict(line.fixed)} for line in lines]}
    return pa.table(arrays).replace_schema_metadata({b"phasefront.boundary": json.dumps(meta).encode()})


def _along(line: BoundaryLine, name: str, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P,) an axis's values along a line: a column of its points, or the value at which it is held."""
    if name in line.axes:
        return points[:, line.axes.index(name)]
    value = line.fixed.get(name)
    return np.full(len(points), float(value) if is_number(value) else np.nan)


def write_geojson(lines: Sequence[BoundaryLine], path: Path) -> None:
    """Write the polylines: `properties` has `phases`, `axes`, `slice` and, along the line, `uncertainty`
    (given these seeds) and `uncertainty_over_seeds`."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "LineString", "coordinates": _pairs(line.points)},
            "properties": {
                "phases": None if line.labels is None else list(line.labels),
                "axes": list(line.axes),
                "slice": dict(line.fixed),
                "uncertainty": _uncertainty(line.at_5, line.at_95, line.offsets),
                "uncertainty_over_seeds": _uncertainty(line.over_at_5, line.over_at_95, line.over_offsets),
            },
        }
        for line in lines
    ]
    content = {"type": "FeatureCollection", "coordinates_are": "axis units", "features": features}
    path.write_text(json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")


def _uncertainty(
    at_5: NDArray[np.float64], at_95: NDArray[np.float64], offsets: NDArray[np.float64]
) -> dict[str, list[Any]]:
    return {
        "at_5": _pairs(at_5),
        "at_95": _pairs(at_95),
        "offset_5": _nullable(offsets[:, 0]),
        "offset_95": _nullable(offsets[:, 1]),
    }


def _pairs(points: NDArray[np.float64]) -> list[list[float] | None]:
    return [None if math.isnan(x + y) else [x, y] for x, y in points.tolist()]


def _nullable(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(v) else v for v in values.tolist()]
