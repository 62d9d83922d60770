"""A boundary as data: a Parquet file of vertices, and the same lines in the form of GeoJSON, both in axis units.

`boundary.parquet` has one row a vertex: `line` (0, 1, ... along the file), `vertex` (0, 1, ... along the line),
`label_a`, `label_b` (the phases on its two sides; null for a ridge), one column per axis that was held (its value;
null where the axis does not exist there) and, for each of the two axes of the plane, `<axis>`, `<axis>_at_5` and
`<axis>_at_95`: where the boundary is, and the positions on its normal at which `label_a` has 5% and 95% of the belief
(for a ridge: the 5% and 95% quantiles of the peak). `offset_5` and `offset_95` are the signed distances of these two
from the vertex, in box widths (each axis from end to end, in its own scale); the normal is one in that box. Null: the
belief is nowhere so sure within the box.

`boundary.geojson` is a FeatureCollection of LineStrings with the same numbers, whose coordinates are axis units and no
longitude and latitude.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.job import Scalar
from orchestrator.phases.map.surface_map import FittedMap, Plane, held_positions, planes, ridge_of
from orchestrator.phases.map.surface_map import FittedSlice as Fitted
from orchestrator.surface.base import ClassSurface, RidgeSurface

_META = b"phasefront.boundary"
_OWN = ("line", "vertex", "label_a", "label_b", "offset_5", "offset_95")
RIDGE_POINTS = 201
"""Vertices of a ridge's curve."""


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


def boundary_lines(found: FittedMap, drawn: Mapping[int, Sequence[Plane]] | None = None) -> list[BoundaryLine]:
    """Every boundary (or ridge) of a map.

    Args:
        found: the map.
        drawn: planes that are at hand already, by the index of the fitted slice; used where it has two axes.
    """
    lines: list[BoundaryLine] = []
    for s, one in enumerate(found.fitted):
        ridge = ridge_of(one)
        if ridge is not None:
            lines += ridge_lines(one, ridge)
        elif isinstance(one.surface, ClassSurface):
            ready = (drawn or {}).get(s) if len(one.slice.axes) == 2 else None
            for plane in ready if ready is not None else planes(one, stack=True):
                lines += _lines_of(plane, found.labels)
    return lines


def _lines_of(plane: Plane, labels: Sequence[str]) -> list[BoundaryLine]:
    made = []
    for crossing in plane.lines:
        low, high = crossing.ends()
        values = [
            np.column_stack([plane.x.value(p[:, 0]), plane.y.value(p[:, 1])]) for p in (crossing.points, low, high)
        ]
        made.append(
            BoundaryLine(
                labels=(labels[crossing.a], labels[crossing.b]),
                axes=(plane.x.name, plane.y.name),
                fixed=plane.fixed,
                points=values[0],
                at_5=values[1],
                at_95=values[2],
                offsets=crossing.offsets,
            )
        )
    return made


def ridge_lines(fitted: Fitted, ridge: RidgeSurface) -> list[BoundaryLine]:
    """The peak along its axis, over the first other axis, for some positions of the rest."""
    axes = fitted.slice.axes
    along = ridge.along
    others = [a for a in range(len(axes)) if a != along]
    made = []
    for held, _ in held_positions(fitted.evidence.x[:, [others[0], along, *others[1:]]], len(axes), most=9):
        over = np.linspace(0, 1, RIDGE_POINTS)
        at = np.column_stack([over, *(np.full(len(over), value) for value in held.values())])
        median, low, high = ridge.peak(at)
        x, y = axes[others[0]], axes[along]
        values = {axes[others[k - 1]].name: float(axes[others[k - 1]].value(np.array(v))) for k, v in held.items()}
        across = x.value(over)
        made.append(
            BoundaryLine(
                labels=None,
                axes=(x.name, y.name),
                fixed={**fitted.slice.fixed, **values},
                points=np.column_stack([across, y.value(median)]),
                at_5=np.column_stack([across, y.value(low)]),
                at_95=np.column_stack([across, y.value(high)]),
                offsets=np.column_stack([low - median, high - median]),
            )
        )
    return made


def write_parquet(lines: Sequence[BoundaryLine], path: Path) -> None:
    """Write the vertices (see the module for the columns).

    An axis whose name another column has is kept as `axis.<name>`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    held = list(dict.fromkeys(name for line in lines for name in line.fixed))
    used = list(dict.fromkeys(name for line in lines for name in line.axes))
    both = [*dict.fromkeys([*used, *held])]
    taken = {*_OWN, *(f"{name}_at_{p}" for name in used for p in (5, 95))}
    column = {name: f"axis.{name}" if name in taken else name for name in both}
    length = [len(line.points) for line in lines]

    def each(values: Iterable[Any], kind: Any = None) -> Any:
        return pa.array([v for v, n in zip(values, length, strict=True) for _ in range(n)], kind)

    arrays: dict[str, Any] = {
        "line": each(range(len(lines)), pa.int64()),
        "vertex": pa.array([i for n in length for i in range(n)], pa.int64()),
        "label_a": each([line.labels[0] if line.labels else None for line in lines], pa.string()),
        "label_b": each([line.labels[1] if line.labels else None for line in lines], pa.string()),
    }
    for name in both:
        if name in used:
            arrays[column[name]] = _numbers([_along(line, name, line.points) for line in lines])
            arrays[f"{column[name]}_at_5"] = _numbers([_along(line, name, line.at_5) for line in lines])
            arrays[f"{column[name]}_at_95"] = _numbers([_along(line, name, line.at_95) for line in lines])
        else:
            values = [line.fixed.get(name) for line in lines]
            mixed = len({type(v) for v in values if v is not None} - {int, float}) > (
                0 if any(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values) else 1
            )
            arrays[column[name]] = each([None if v is None else str(v) for v in values] if mixed else values)
    arrays["offset_5"] = _numbers([line.offsets[:, 0] for line in lines])
    arrays["offset_95"] = _numbers([line.offsets[:, 1] for line in lines])
    meta = {
        "columns": column,
        "lines": [{"axes": line.axes, "fixed": dict(line.fixed)} for line in lines],
    }
    table = pa.table(arrays).replace_schema_metadata({_META: json.dumps(meta).encode()})
    pq.write_table(table, path, compression="zstd")


def _along(line: BoundaryLine, name: str, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P,) an axis's values along a line: a column of its points, or what it is held at."""
    if name in line.axes:
        return points[:, line.axes.index(name)]
    value = line.fixed.get(name)
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return np.full(len(points), float(value) if known else np.nan)  # type: ignore[arg-type]


def _numbers(parts: Sequence[NDArray[np.float64]]) -> Any:
    import pyarrow as pa

    values = np.concatenate(parts) if parts else np.zeros(0)
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def read_parquet(path: Path) -> list[BoundaryLine]:
    """Read what `write_parquet` wrote.

    Raises:
        ValueError: the file is Parquet, but holds no boundary.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    meta = (table.schema.metadata or {}).get(_META)
    if meta is None:
        raise ValueError(f"{path} holds no boundary: it lacks the metadata {_META.decode()!r}")
    said = json.loads(meta)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    member = np.array(columns["line"], dtype=np.int64)
    lines = []
    for k, about in enumerate(said["lines"]):
        rows = np.flatnonzero(member == k)
        axes = (about["axes"][0], about["axes"][1])
        names = [said["columns"][name] for name in axes]
        a, b = (columns[c][rows[0]] for c in ("label_a", "label_b"))
        lines.append(
            BoundaryLine(
                labels=None if a is None else (a, b),
                axes=axes,
                fixed=about["fixed"],
                points=_columns(columns, names, rows),
                at_5=_columns(columns, [f"{n}_at_5" for n in names], rows),
                at_95=_columns(columns, [f"{n}_at_95" for n in names], rows),
                offsets=_columns(columns, ["offset_5", "offset_95"], rows),
            )
        )
    return lines


def _columns(
    columns: Mapping[str, Sequence[Any]], names: Sequence[str], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    picked = [[columns[name][row] for name in names] for row in rows]
    return np.array(picked, dtype=np.float64).reshape(len(rows), len(names))


def write_geojson(lines: Sequence[BoundaryLine], path: Path) -> None:
    """Write the polylines: `properties` has `phases`, `axes`, `slice` and the `uncertainty` along the line."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "LineString", "coordinates": _pairs(line.points)},
            "properties": {
                "phases": None if line.labels is None else list(line.labels),
                "axes": list(line.axes),
                "slice": dict(line.fixed),
                "uncertainty": {
                    "at_5": _pairs(line.at_5),
                    "at_95": _pairs(line.at_95),
                    "offset_5": _nullable(line.offsets[:, 0]),
                    "offset_95": _nullable(line.offsets[:, 1]),
                },
            },
        }
        for line in lines
    ]
    content = {"type": "FeatureCollection", "coordinates_are": "axis units", "features": features}
    path.write_text(json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")


def read_geojson(path: Path) -> list[BoundaryLine]:
    """Read what `write_geojson` wrote.

    Raises:
        ValueError: the file holds no such collection.
    """
    try:
        lines = []
        for feature in json.loads(path.read_text(encoding="utf-8"))["features"]:
            said, points = feature["properties"], _array(feature["geometry"]["coordinates"])
            unsure = said["uncertainty"]
            offsets = np.array([unsure["offset_5"], unsure["offset_95"]], dtype=np.float64).T
            lines.append(
                BoundaryLine(
                    labels=None if said["phases"] is None else (said["phases"][0], said["phases"][1]),
                    axes=(said["axes"][0], said["axes"][1]),
                    fixed=said["slice"],
                    points=points,
                    at_5=_array(unsure["at_5"]),
                    at_95=_array(unsure["at_95"]),
                    offsets=offsets,
                )
            )
        return lines
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} holds no boundary: {error!r}") from error


def _pairs(points: NDArray[np.float64]) -> list[list[float] | None]:
    return [None if math.isnan(x + y) else [float(x), float(y)] for x, y in points]


def _array(pairs: Sequence[Sequence[float] | None]) -> NDArray[np.float64]:
    return np.array([[np.nan, np.nan] if pair is None else pair for pair in pairs], dtype=np.float64).reshape(-1, 2)


def _nullable(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(v) else float(v) for v in values]
