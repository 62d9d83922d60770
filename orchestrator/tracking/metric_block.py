"""Many rows of MLflow's `metrics` as arrays: names and runs as numbers into short lists of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = Sequence[Sequence[Any]]
"""One sequence of values for each column, all of the same length."""
MetricRow = tuple[str, float, int, int, bool, str]
"""key, value (0 where NaN, infinities clamped), timestamp in ms, step, is NaN, run id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricBlock:
    """N metric rows, R runs, K metrics."""

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
    value: NDArray[np.float64]
    """(N,) as stored: 0 where NaN, infinities clamped."""
    is_nan: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.metric)

    def ordered(self) -> MetricBlock:
        """The rows metric by metric, each run by run, each in the order they had.

        Two of the table's three indexes begin with the run, the third with metric and time: in this
        order neighbouring rows touch the same page of each index, or one that is in the cache.
        """
        rank_of_run, rank_of_metric = _ranks(self.runs), _ranks(self.metrics)
        order = np.argsort(rank_of_metric[self.metric] * len(self.runs) + rank_of_run[self.run], kind="stable")
        return self._taken(order)

    def _taken(self, rows: NDArray[np.int64]) -> MetricBlock:
        return MetricBlock(
            metrics=self.metrics,
            runs=self.runs,
            metric=self.metric[rows],
            run=self.run[rows],
            timestamp=self.timestamp[rows],
            step=self.step[rows],
            value=self.value[rows],
            is_nan=self.is_nan[rows],
        )

    def latest(self) -> list[MetricRow]:
        """Of each run's metric the row that MLflow calls the latest: highest step, then timestamp, then value."""
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
    """Rows, at least one, as a block."""
    keys, values, timestamps, steps, is_nan, runs = zip(*rows, strict=True)
    metrics, metric = numbered(keys)
    ids, run = numbered(runs)
    return MetricBlock(
        metrics=metrics,
        runs=ids,
        metric=metric,
        run=run,
        timestamp=np.array(timestamps, dtype=np.int64),
        step=np.array(steps, dtype=np.int64),
        value=np.array(values, dtype=np.float64),
        is_nan=np.array(is_nan, dtype=np.bool_),
    )


def numbered(texts: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The distinct texts in order of appearance, and each one's number among them."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return tuple(numbers), np.fromiter(map(numbers.__getitem__, texts), dtype=np.int64, count=len(texts))


def _ranks(texts: Sequence[str]) -> NDArray[np.int64]:
    ranks = np.empty(len(texts), dtype=np.int64)
    ranks[sorted(range(len(texts)), key=texts.__getitem__)] = np.arange(len(texts))
    return ranks
