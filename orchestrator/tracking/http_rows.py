"""Metric rows on their way to an MLflow server: in batches, and in place of earlier ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.tracking import layout
from orchestrator.tracking.metric_block import MetricRow


def whole_steps(rows: Sequence[MetricRow], at_most: int) -> Iterator[list[MetricRow]]:
    """One run's rows in batches of at most that many, in step order, a step never in two of them.

    A step with more metrics than a request holds goes alone, in several batches.
    """
    batch: list[MetricRow] = []
    by_step: dict[int, list[MetricRow]] = {}
    for row in rows:
        by_step.setdefault(row[3], []).append(row)
    for step in sorted(by_step):
        if batch and len(batch) + len(by_step[step]) > at_most:
            yield batch
            batch = []
        batch += by_step[step]
        while len(batch) > at_most:
            yield batch[:at_most]
            batch = batch[at_most:]
    if batch:
        yield batch


def json_length(name: str) -> int:
    """The most bytes that a name takes in JSON."""
    return 6 * len(name)


def revised(row: MetricRow, revision: int) -> MetricRow:
    """An observation's row, newer than that of the revision before."""
    key, value, timestamp, step, is_nan, run = row
    return key, value, timestamp + min(revision, layout.OBSERVED_BEFORE_MS - 1), step, is_nan, run
