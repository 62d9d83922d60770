"""Where packs run: the contract between the runner and a pool of warm workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from jobs.job import Scalar
from orchestrator.records import CurveRows, TrialResult


@dataclass(frozen=True, kw_only=True, slots=True)
class PackTask:
    """A pack as a worker gets it: its content as plain data, nothing pickled by value."""

    pack_id: str
    job: str
    trial_ids: tuple[str, ...]
    params: tuple[dict[str, Scalar], ...]
    seeds: tuple[int, ...]
    thresholds: dict[str, Scalar]


class Cause(StrEnum):
    """Why a pack did not end. Each cause has one policy, in `orchestrator.failures`."""

    USER_ERROR = "user error"
    OUT_OF_MEMORY = "out of memory"
    WORKER_LOST = "worker lost"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A pack has measured something: rows, and the trials that ended with them."""

    pack_id: str
    rows: CurveRows | None
    results: tuple[TrialResult, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackEnded:
    """All trials of the pack have been reported."""

    pack_id: str
    train_s: float
    """Seconds of training on the worker, from its first step to its last."""
    busy_s: float | None = None
    """Of these, the seconds that the worker had a core to itself; None: all of them, as far as is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackFailed:
    """The pack as a whole broke; trials reported before stay reported."""

    pack_id: str
    cause: Cause
    error: str
    """Traceback, or what the engine said."""


Event = Progress | PackEnded | PackFailed


class Dispatcher(ABC):
    """A pool of warm workers. One driver thread calls it."""

    @property
    @abstractmethod
    def workers(self) -> int:
        """How many packs run at the same time now."""

    @abstractmethod
    def submit(self, tasks: Sequence[PackTask]) -> None:
        """Queue packs; they start in this order as workers come free. Does not block."""

    @abstractmethod
    def poll(self, timeout_s: float) -> list[Event]:
        """What has happened since the last call; waits up to `timeout_s` for something to happen."""

    @abstractmethod
    def close(self) -> None:
        """Stop the workers at once and let go of everything this object started. Idempotent."""
