"""What travels between worker, runner and tracker. Plain data; arrays are columnar."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from jobs.job import Observations


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
    """(R, K), only where some metric was not reported at some step (a plain function may do so)."""


class Status(StrEnum):
    """How a trial stands in the record."""

    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """How one trial ended."""

    trial_id: str
    status: Status
    """FINISHED (diverged trials too), FAILED or KILLED."""
    phase: str | None = None
    observations: Observations = field(default_factory=dict)
    error: str | None = None
    """A failed trial's traceback, or what killed it."""
    trained: str = ""
    """Where and with what it was trained (`Trained.text`); "" where no worker ended it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """What the tracker already holds of a trial."""

    status: Status
    phase: str | None
    """As recorded, under `thresholds`."""
    observations: Observations
    thresholds: str
    """Fingerprint of the thresholds that `phase` and `observations` were reduced with."""
    through_step: int
    """The last step whose rows are recorded; -1 where there are none. Known for unfinished trials only."""
