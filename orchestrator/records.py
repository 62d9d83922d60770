"""Data that worker, runner, tracker and commands exchange. Arrays are columnar."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from jobs.job import Censored, Observations
from orchestrator.printable import printable
from orchestrator.trial import Trial


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


def phase_metric(label: str) -> str:
    """The metric of a sweep's parent run that counts the trials of a phase, in characters that MLflow accepts."""
    return re.sub(r"[^\w/.: -]", "_", f"phase/{label}")


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
    copied_from: str = ""
    """The run of another record from which it was copied, in words; "" if it was trained here."""

    def __post_init__(self) -> None:
        if self.error is not None:
            object.__setattr__(self, "error", printable(self.error))


LONGEST_OBSERVATIONS = 8000
"""Characters of a trial's observations as JSON: an MLflow tag holds no more."""


def observations_text(observations: Observations) -> str:
    """The observations as JSON, as they are recorded."""

    def plain(value: float) -> float | str:
        return float(value) if math.isfinite(value) else str(float(value))

    return json.dumps(
        {
            name: {"censored": plain(value.at)} if isinstance(value, Censored) else plain(value)
            for name, value in observations.items()
        },
        separators=(",", ":"),
    )


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


@dataclass(kw_only=True)
class Summary:
    """What a run did."""

    done: int = 0
    """Trials finished in this run."""
    failed: int = 0
    skipped: int = 0
    """Trials that had finished before."""
    relabelled: int = 0
    """Those of them whose phase was computed again because the thresholds had changed."""
    killed: int = 0
    """Trials that were running when the run was stopped."""
    handed_out: int = 0
    """Trials that had been handed out then, those that were running among them."""
    stopped: bool = False
    """Whether the run was stopped from outside."""
    gave_up: str = ""
    """Why the run stopped by itself; empty if it did not."""
    phases: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[Trial, TrialResult]] = field(default_factory=list)
    """The first few failed trials."""
    seconds: float = 0.0
    """From the first dispatched pack to the last recorded trial, without start-up."""
    workers: int = 0
    """Workers of the pool when it was ready; 0 if none was needed."""
    startup_s: float = 0.0
    """Until the pool of workers was ready."""
    train_s: float = 0.0
    """Training seconds of the packs that ended, summed over workers."""
    estimated_s: float = 0.0
    """The estimate for these packs."""
    record_s: float = 0.0
    """Seconds spent in the tracker for trials of this run."""
    measured: bool = False
    """Whether any trial of this run reported a metric."""
