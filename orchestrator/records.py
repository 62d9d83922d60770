"""Data that worker, runner and tracker exchange. Arrays are columnar."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from jobs.job import Observations
from orchestrator.printable import printable


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveRows:
    """Rows of several trials' curves: R rows, K metrics. Row r is one step of one trial."""

    trial_ids: tuple[str, ...]
    metrics: tuple[str, ...]
    """(K,) names."""
    trial: NDArray[np.int32]
    """(R,) index into `trial_ids`."""
    step: NDArray[np.int64]
    """(R,) optimiser steps; within a trial they increase."""
    values: NDArray[np.float64]
    """(R, K) values; NaN is a measured NaN."""
    present: NDArray[np.bool_] | None = None
    """(R, K); None if every metric was reported in every row (a plain function may leave some out)."""


class Status(StrEnum):
    """Status of a trial in the record."""

    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


@dataclass(frozen=True, slots=True)
class TrialResult:
    """How one trial ended."""

    trial_id: str
    status: Status
    """FINISHED (diverged trials too), FAILED or KILLED."""
    phase: str | None = None
    observations: Observations = field(default_factory=dict)
    error: str | None = None
    """Traceback of a failed trial, or the reason why it was killed; kept in a printable form."""
    trained: str = ""
    """Its `TrainingRecord`, as text; "" if no worker ended it."""

    def __post_init__(self) -> None:
        if self.error is not None:
            object.__setattr__(self, "error", printable(self.error))


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """The recorded state of a trial."""

    status: Status
    phase: str | None
    """As recorded, under `thresholds`."""
    observations: Observations
    thresholds: str
    """Fingerprint of the thresholds that `phase` and `observations` depend on."""
    through_step: int
    """The last recorded step; -1 if there is none, and for finished trials."""
