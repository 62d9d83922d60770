"""What a record holds about its runs, summarised run by run for `audit`: reads only, creates nothing.

The summaries are made by set-based statements over pages of runs, so that neither round trips nor memory grow with each
trial or with the length of curves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from orchestrator.outages import Patience
from orchestrator.tracking import layout
from orchestrator.tracking.lease import Lease

RUNS_A_PAGE = 2_000


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveFacts:
    """The rows of one metric of one run that are points of its curve."""

    rows: int
    steps: int
    """Distinct steps; equal to `rows` if every step was written once."""
    first: int
    last: int
    misplaced: int
    """Rows whose timestamp is not the run's start plus the step in milliseconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """One active run: a trial, or the parent run of a sweep."""

    run_id: str
    name: str
    status: str
    start_time: int
    """ms since the epoch."""
    end_time: int | None
    artifacts: str
    """The run's artifact location."""
    tags: Mapping[str, str]
    params: Mapping[str, str] | None
    """None where the record does not show them in bulk (HTTP)."""
    curves: Mapping[str, CurveFacts] = field(default_factory=dict)
    steps: int = 0
    """Distinct steps over all metrics."""
    observed: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """Metric -> number of rows from before the run's start, and the value of one of them."""
    axes: Mapping[str, float] = field(default_factory=dict)
    """Metric -> the trial's value on an axis (see `layout.axis_metrics`)."""
    latest: Mapping[str, float] = field(default_factory=dict)
    """Metric -> its latest value, as MLflow shows it."""
    outdated: tuple[str, ...] = ()
    """Metrics whose latest value is missing, or not the newest row."""


class Opened(NamedTuple):
    """How a sweep was last opened to be run; empty texts where that is not recorded."""

    process: str = ""
    """`Process.text` of the driver."""
    again: str = ""
    """See `SweepRecord.again`."""

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> Self:
        """From the tags of the parent run."""
        return cls(process=tags.get(layout.DRIVER, ""), again=tags.get(layout.AGAIN, ""))


class RecordReader(ABC):
    """Reads the runs of one experiment; a request that fails because the record is away is repeated, with patience."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience

    @abstractmethod
    def runs(self) -> Iterator[RunFacts]:
        """Every active run of the experiment, in no particular order; none where nothing is recorded."""

    @abstractmethod
    def lease(self) -> Lease | None:
        """The lease of the experiment; None if no driver of this version has taken it."""

    @abstractmethod
    def opened(self, run_id: str) -> Opened:
        """How a sweep was last opened to be run.

        Args:
            run_id: the parent run of the sweep.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""
