"""Rows in the two formats of PostgreSQL's COPY."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from orchestrator.tracking.metric_block import Columns, MetricBlock

BINARY_METRICS = ("value", "timestamp", "step", "is_nan", "run_uuid", "key")
"""Columns of `binary_metrics`, in its order."""

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": ""})
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # signature, flags, length of the header's extension
_TRAILER = b"\xff\xff"


def binary_metrics(block: MetricBlock) -> bytes:
    """Metric rows in COPY's binary format, texts in UTF-8: a third of the text format's cost.

    A row is the number of its fields, then the length and the bytes of each, big-endian (PostgreSQL
    manual, COPY, "Binary Format"). Rows are built at the width of the longest texts; the bytes
    that padding adds are left out at the end.
    """
    metrics, runs = ([text.encode() for text in texts] for texts in (block.metrics, block.runs))
    widest_metric, widest_run = max(map(len, metrics)), max(map(len, runs))
    layout = np.dtype(
        [("fields", ">i2")] + [(name, kind) for field in _fields(widest_run, widest_metric) for name, kind in field]
    )
    rows = np.empty(len(block), dtype=layout)
    rows["fields"] = len(BINARY_METRICS)
    for name, size in (("value", 8), ("timestamp", 8), ("step", 8), ("is_nan", 1)):
        rows[f"{name}_size"] = size
        rows[name] = getattr(block, name)
    keep = np.ones((len(block), layout.itemsize), dtype=np.bool_)
    for name, texts, numbers in (("run_uuid", runs, block.run), ("key", metrics, block.metric)):
        sizes = np.array([len(text) for text in texts])
        rows[f"{name}_size"] = sizes[numbers]
        rows[name] = np.array(texts, dtype=layout[name])[numbers]
        start, width = layout.fields[name][1], layout[name].itemsize  # type: ignore[index]
        if sizes.min() < width:
            keep[:, start : start + width] = np.arange(width) < sizes[numbers][:, None]
    content = rows.view(np.uint8).reshape(keep.shape)
    return _HEADER + (content if keep.all() else content[keep]).tobytes() + _TRAILER


def _fields(run: int, metric: int) -> list[list[tuple[str, str]]]:
    kinds = zip(BINARY_METRICS, (">f8", ">i8", ">i8", "i1", f"S{run}", f"S{metric}"), strict=True)
    return [[(f"{name}_size", ">i4"), (name, kind)] for name, kind in kinds]


def copy_text(columns: Columns) -> str:
    """Rows, given column by column, in COPY's text format; a column's first value tells how to write all of it."""
    texts: list[Iterable[str]] = []
    for column in columns:
        kind = type(column[0])
        if kind is float or (kind is int and None not in column):
            texts.append(map(repr, column))
        elif kind is bool:
            texts.append(["t" if value else "f" for value in column])
        else:
            texts.append(_escaped(column))
    return "\n".join(map("\t".join, zip(*texts, strict=True))) + "\n"


def _escaped(column: Sequence[Any]) -> list[str]:
    """Few distinct values fill most columns (keys, run ids), so each distinct one is escaped once."""
    known = {value: "\\N" if value is None else str(value).translate(_ESCAPES) for value in set(column)}
    return [known[value] for value in column]
