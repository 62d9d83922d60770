"""The contract between the runner and a pool of warm workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from jobs.job import Scalar
from orchestrator.checkpoints.saving import Saved, Saving
from orchestrator.dispatch.source import Source
from orchestrator.printable import printable
from orchestrator.records import CurveRows, TrialResult


@dataclass(frozen=True, kw_only=True, slots=True)
class PackTask:
    """A pack as it is sent to a worker: plain data, nothing pickled by value."""

    pack_id: str
    job: str
    trial_ids: tuple[str, ...]
    params: tuple[dict[str, Scalar], ...]
    seeds: tuple[int, ...]
    thresholds: dict[str, Scalar]
    retired: tuple[str, ...] = ()
    """Observations to make although the job has retired them (`Job.retired`)."""
    label: str = ""
    """Its first trial as messages name it (`Trial.text`)."""
    avoid_nodes: frozenset[str] = frozenset()
    """Nodes on which an earlier attempt failed: it runs elsewhere if any other node has a worker."""
    fresh_worker: bool = False
    """Whether it runs as the first pack of a new worker process, unless it runs on another node than `avoid_nodes`."""
    alone: bool = False
    """Whether it runs while no other pack runs on its node, as far as that can be arranged."""
    timeout_s: float | None = None
    """Seconds after which a trial that has not ended counts as hanging; None: never."""
    expected_s: float = 0.0
    """Estimated duration of the pack; 0 if unknown."""
    source: str = ""
    """The driver's source of the job (`Source.text`): a worker with another one refuses the pack. Empty: any."""
    saving: Saving | None = None
    """Where it is saved, and what it continues from; None: it is not saved."""


class Cause(StrEnum):
    """Why a pack failed. `orchestrator.failures` has one policy for each cause."""

    USER_ERROR = "user error"
    OUT_OF_MEMORY = "out of memory"
    WORKER_LOST = "worker lost"
    """Its process died by itself."""
    NODE_LOST = "node lost"
    """Its machine died, was preempted or was cut off: never counted against a trial."""
    OTHER_SOURCE = "another version of the job"
    """The worker has another source of the job than the driver, or none, and has not trained."""
    TIMED_OUT = "timed out"
    """Its worker may still be in the trial, and must be killed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackProgress:
    """New curve rows of a pack, and the results of the trials that ended with them."""

    pack_id: str
    rows: CurveRows | None
    results: tuple[TrialResult, ...]
    node: str = ""
    """The node it runs on, stated with a failed result; empty if unknown."""
    unread: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Trial -> the parameters that its code has not read, of those among `results` of which that is known."""
    saved: Saved | None = None
    """The checkpoint that was written."""
    notice: str = ""
    """What the user should know of checkpoints that could not be written or read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackEnded:
    """All trials of the pack have been reported."""

    pack_id: str
    train_s: float
    """Wall-clock seconds of training on the worker, from the first step to the last."""
    busy_s: float | None = None
    """The part of `train_s` for which the worker had a core (see `worker.busy_clock`); None: all of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackFailed:
    """The pack failed as a whole. Results reported earlier remain valid."""

    pack_id: str
    cause: Cause
    error: str
    """Traceback, or the engine's message; kept in a printable form."""
    node: str = ""
    """The node it ran on; empty if unknown."""
    trial_id: str = ""
    """The trial that caused it, if the worker knows: it alone is to blame, and the others are retried."""
    source: Source | None = None
    """The worker's source of the job, if that is the cause."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "error", printable(self.error))


PACKS_AHEAD = 2
"""Packs handed to the dispatcher per worker: the running one and the next."""

Event = PackProgress | PackEnded | PackFailed


class Dispatcher(ABC):
    """A pool of warm workers, used by one driver thread."""

    @property
    @abstractmethod
    def workers(self) -> int:
        """How many packs can run at the same time now."""

    @property
    def planned_workers(self) -> int:
        """For how many workers to make packs: those that may join are among them."""
        return self.workers

    @property
    def packs_ahead(self) -> int:
        """Packs for each worker that it should have: the running one and those that wait."""
        return PACKS_AHEAD

    @abstractmethod
    def submit(self, tasks: Sequence[PackTask]) -> None:
        """Queue packs; they start in this order as workers become free. Does not block."""

    @abstractmethod
    def poll(self, timeout_s: float) -> list[Event]:
        """Return the events since the last call; wait up to `timeout_s` for the first."""

    def notices(self) -> list[str]:
        """What the user should know since the last call: nodes that were excluded, reasons for waiting."""
        return []

    def running(self) -> Collection[str] | None:
        """The packs that are being trained now; None if that is not known."""
        return None

    def prepare_to_close(self) -> None:
        """Ask for a checkpoint of every pack that has run for a while, and for no more nodes; does not block.

        A stopped run calls it first, because its process may be ended before `close`.
        """
        return

    def await_saved(self, timeout_s: float) -> None:
        """Wait until the packs that `prepare_to_close` asked are saved or have ended. Events are dropped meanwhile."""
        return

    @property
    def note(self) -> str:
        """The state of the workers for the progress line, where not all of them are ready; otherwise empty."""
        return ""

    @abstractmethod
    def close(self) -> None:
        """Stop the workers immediately and release everything this object started. Idempotent."""
