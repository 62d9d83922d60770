"""Packs, and the kinds of packs whose training times are remembered together."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable
from dataclasses import dataclass

from jobs.job import Cost
from orchestrator.trial import Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """Trials that are trained together."""

    trials: tuple[Trial, ...]
    seconds: float
    """Estimated training time if every trial runs to its horizon; 0 if unknown."""
    memory_bytes: float = 0.0
    kind: str = ""
    """See `pack_kind`; empty if the job states no cost."""
    shape: float = 0.0
    """The size of its tensor operations, see `orchestrator.plan.calibration.Machine.shape`."""
    counted_s: float = 0.0
    """The estimate from the counts of the cost model alone, before corrections."""
    at_most: bool = False
    """Whether a criterion of the job may end its trials before their horizon."""


def pack_kind(job: str, version: int, key: Hashable, cost: Cost, at_once: int) -> str:
    """The kind of a pack: its job, its pack key and its ratio of training steps to reports.

    Args:
        job: name of the job.
        version: version of the job.
        key: pack key of its trials.
        cost: of any pack with this key.
        at_once: number of workers that share the memory and the cores of one machine.
    """
    pace = round(math.log2(max(1.0, cost.steps / max(1, cost.reports))))
    digest = hashlib.blake2b(repr((key, pace, at_once)).encode(), digest_size=8).hexdigest()
    return f"{job}@{version}/{digest}"
