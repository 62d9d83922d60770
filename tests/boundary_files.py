"""Helpers that read the files of a boundary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from orchestrator.phases.map.boundary_data import BoundaryLine


def read_parquet(path: Path) -> list[BoundaryLine]:
    """Read what `write_parquet` wrote."""
    table = pq.read_table(path)
    meta = json.loads(table.schema.metadata[b"phasefront.boundary"])
    columns = {name: table[name].to_pylist() for name in table.column_names}
    member = np.array(columns["line"], dtype=np.int64)
    lines = []
    for k, about in enumerate(meta["lines"]):
        rows = np.flatnonzero(member == k)
        axes = (about["axes"][0], about["axes"][1])
        names = [meta["columns"][name] for name in axes]
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
                over_at_5=_columns(columns, [f"{n}_over_seeds_at_5" for n in names], rows),
                over_at_95=_columns(columns, [f"{n}_over_seeds_at_95" for n in names], rows),
                over_offsets=_columns(columns, ["over_seeds_offset_5", "over_seeds_offset_95"], rows),
            )
        )
    return lines


def _columns(
    columns: Mapping[str, Sequence[Any]], names: Sequence[str], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    picked = [[columns[name][row] for name in names] for row in rows]
    return np.array(picked, dtype=np.float64).reshape(len(rows), len(names))


def read_geojson(path: Path) -> list[BoundaryLine]:
    """Read what `write_geojson` wrote."""
    lines = []
    for feature in json.loads(path.read_text(encoding="utf-8"))["features"]:
        properties, unsure = feature["properties"], feature["properties"]["uncertainty"]
        over = properties["uncertainty_over_seeds"]
        lines.append(
            BoundaryLine(
                labels=None if properties["phases"] is None else tuple(properties["phases"]),
                axes=tuple(properties["axes"]),
                fixed=properties["slice"],
                points=_array(feature["geometry"]["coordinates"]),
                at_5=_array(unsure["at_5"]),
                at_95=_array(unsure["at_95"]),
                offsets=np.array([unsure["offset_5"], unsure["offset_95"]], dtype=np.float64).T,
                over_at_5=_array(over["at_5"]),
                over_at_95=_array(over["at_95"]),
                over_offsets=np.array([over["offset_5"], over["offset_95"]], dtype=np.float64).T,
            )
        )
    return lines


def _array(pairs: Sequence[Sequence[float] | None]) -> NDArray[np.float64]:
    return np.array([[np.nan, np.nan] if pair is None else pair for pair in pairs], dtype=np.float64).reshape(-1, 2)
