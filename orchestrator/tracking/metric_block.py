"""Rows of MLflow's `metrics` as arrays, with metric names and run ids as indices, and in PostgreSQL's COPY formats.

Shape suffixes: N metric rows, R runs, K metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = Sequence[Sequence[Any]]
"""One sequence of values for each column, all of the same length."""
MetricRow = tuple[str, float, int, int, bool, str]
"""Key, value (0 for NaN, infinities clamped), timestamp in ms, step, is NaN, run id."""

BINARY_METRICS = ("value", "timestamp", "step", "is_nan", "run_uuid", "key")
"""Columns of `binary_metrics`, in its order."""

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": ""})
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # signature, flags, length of the header's extension
_TRAILER = b"\xff\xff"


@dataclass(frozen=True, slots=True)
class MetricBlock:
    """N metric rows."""

    metrics: tuple[str, ...]
    """(K,) names."""
    runs: tuple[str, ...]
    """(R,) run ids."""
    metric: NDArray[np.int64]
    """(N,) index into `metrics`."""
    run: NDArray[np.int64]
    """(N,) index into `runs`."""
    timestamp: NDArray[np.int64]
    """(N,) ms since the epoch."""
    step: NDArray[np.int64]
    """(N,)"""
    value: NDArray[np.float64]
    """(N,) as stored: 0 for NaN, infinities clamped."""
    is_nan: NDArray[np.bool_]
    """(N,)"""

    def __len__(self) -> int:
        return len(self.metric)

    def ordered(self) -> MetricBlock:
        """The rows sorted by metric, then by run; rows of one run and metric keep their order.

        Two of the table's three indexes begin with the run, the third with metric and time: in this order
        neighbouring rows touch the same page of each index, or one that is in the cache.
        """
        rank_of_run, rank_of_metric = _ranks(self.runs), _ranks(self.metrics)
        order = np.argsort(rank_of_metric[self.metric] * len(self.runs) + rank_of_run[self.run], kind="stable")
        return self._taken(order)

    def _taken(self, rows: NDArray[np.int64]) -> MetricBlock:
        names = ("metric", "run", "timestamp", "step", "value", "is_nan")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def latest(self) -> list[MetricRow]:
        """The latest row of each run and metric by MLflow's rule: highest step, then timestamp, then value."""
        pair = self.metric * len(self.runs) + self.run
        order = np.lexsort((self.value, self.timestamp, self.step, pair))
        last = np.flatnonzero(np.diff(pair[order], append=-1))
        return list(zip(*self._taken(order[last]).columns(), strict=True))

    def columns(self) -> Columns:
        """The columns of `metrics` as lists of plain values."""
        return (
            np.array(self.metrics, dtype=object)[self.metric].tolist(),
            self.value.tolist(),
            self.timestamp.tolist(),
            self.step.tolist(),
            self.is_nan.tolist(),
            np.array(self.runs, dtype=object)[self.run].tolist(),
        )


def block_of(rows: Sequence[MetricRow]) -> MetricBlock:
    """At least one row as a block."""
    keys, values, timestamps, steps, is_nan, run_ids = zip(*rows, strict=True)
    (metrics, metric), (runs, run) = numbered(keys), numbered(run_ids)
    timestamp, step = np.array(timestamps, dtype=np.int64), np.array(steps, dtype=np.int64)
    value, nan = np.array(values, dtype=np.float64), np.array(is_nan, dtype=np.bool_)
    return MetricBlock(metrics, runs, metric, run, timestamp, step, value, nan)


def numbered(texts: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The distinct texts in order of appearance, and the index of each text among them."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return tuple(numbers), np.fromiter(map(numbers.__getitem__, texts), dtype=np.int64, count=len(texts))


def _ranks(texts: Sequence[str]) -> NDArray[np.int64]:
    ranks = np.empty(len(texts), dtype=np.int64)
    ranks[sorted(range(len(texts)), key=texts.__getitem__)] = np.arange(len(texts))
    return ranks


def binary_metrics(block: MetricBlock) -> bytes:
    """Metric rows in COPY's binary format, texts in UTF-8: a third of the text format's cost.

    A row is the number of its fields, then the length and the bytes of each, big-endian (PostgreSQL manual, COPY,
    "Binary Format"). Rows are built at the width of the longest texts; the padding is removed at the end.
    """
    metrics, runs = ([text.encode() for text in texts] for texts in (block.metrics, block.runs))
    formats = (">f8", ">i8", ">i8", "i1", f"S{max(map(len, runs))}", f"S{max(map(len, metrics))}")
    fields = [(name, kind) for column in zip(BINARY_METRICS, formats, strict=True) for name, kind in _sized(*column)]
    rows = np.empty(len(block), dtype=[("fields", ">i2"), *fields])
    rows["fields"] = len(BINARY_METRICS)
    for name, size in (("value", 8), ("timestamp", 8), ("step", 8), ("is_nan", 1)):
        rows[f"{name}_size"] = size
        rows[name] = getattr(block, name)
    offsets: Mapping[str, tuple[Any, ...]] = rows.dtype.fields or {}
    keep = np.ones((len(block), rows.itemsize), dtype=np.bool_)
    for name, texts, numbers in (("run_uuid", runs, block.run), ("key", metrics, block.metric)):
        sizes = np.array([len(text) for text in texts])
        rows[f"{name}_size"] = sizes[numbers]
        rows[name] = np.array(texts, dtype=rows.dtype[name])[numbers]
        start, width = offsets[name][1], rows.dtype[name].itemsize
        if sizes.min() < width:
            keep[:, start : start + width] = np.arange(width) < sizes[numbers][:, None]
    content = rows.view(np.uint8).reshape(keep.shape)
    return _HEADER + (content if keep.all() else content[keep]).tobytes() + _TRAILER


def _sized(name: str, kind: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return (f"{name}_size", ">i4"), (name, kind)


def copy_text(columns: Columns) -> str:
    """Rows, given column by column, in COPY's text format; the type of a column's first value is that of all."""
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
    """Most columns (keys, run ids) have few distinct values, so each distinct one is escaped once."""
    known = {value: "\\N" if value is None else str(value).translate(_ESCAPES) for value in set(column)}
    return [known[value] for value in column]
