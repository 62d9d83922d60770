"""The contract between the pool, which decides, and an engine, which starts and stops workers: Ray, or a simulation.

An engine decides nothing and keeps no time of its own: the pool (`orchestrator.dispatch.pool`) says which worker starts
on which node and which pack runs on which worker. Workers are known by numbers that the pool gives, nodes by ids that
the engine gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from orchestrator.dispatch.base import Cause, Event, PackTask


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeRoom:
    """A node that is alive, and its room for workers."""

    name: str
    """As it is shown to the user."""
    room: int
    """Workers that fit on it if nothing else runs there."""
    free: int | None = None
    """Further workers that could start on it now; None if unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerReady:
    """A worker has started."""

    worker: int
    gpu: str = ""
    """Its GPU, GPUs or slice, as the node calls it; empty if it has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerDied:
    """A worker has ended, or could not start. Its packs are lost; no further event of it follows."""

    worker: int
    cause: Cause
    """WORKER_LOST, NODE_LOST or OUT_OF_MEMORY."""
    error: str
    """What the engine says of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackNews:
    """An event of a pack, from the worker that it was given to."""

    worker: int
    event: Event


EngineEvent = WorkerReady | WorkerDied | PackNews


class Engine(ABC):
    """Starts and stops workers and packs, and reports what happens to them. Used by one thread."""

    @property
    @abstractmethod
    def worker_needs(self) -> str:
        """What one worker takes, for messages: "4 CPUs", "1 CPU and 0.5 GPUs"."""

    @property
    def lacking(self) -> str:
        """What a worker needs and no node has, for messages; empty if that is not why there is no room."""
        return ""

    @abstractmethod
    def nodes(self) -> Mapping[str, NodeRoom]:
        """The nodes that are alive, by id; those that hold no worker may be left out. Cheap, never blocks.

        Raises:
            Outage: the cluster does not answer.
        """

    @abstractmethod
    def start_worker(self, worker: int, node: str) -> None:
        """Start a worker on a node. `WorkerReady` or `WorkerDied` follows."""

    @abstractmethod
    def kill_worker(self, worker: int) -> None:
        """End a worker and its packs at once. No event of it follows."""

    @abstractmethod
    def start_pack(self, worker: int, task: PackTask) -> None:
        """Give a pack to a ready worker. It starts when the packs that the worker already has have ended."""

    @abstractmethod
    def withdraw(self, worker: int, pack_id: str) -> None:
        """Withdraw the last pack of a worker, which waits behind another; no event of it follows."""

    @abstractmethod
    def wait(self, timeout_s: float) -> list[EngineEvent]:
        """Return what has happened; wait up to `timeout_s` for the first event. Events of a worker are in order.

        Raises:
            Outage: the engine is gone for good.
        """

    def last_output(self, worker: int) -> str:
        """The last lines that a worker has printed; empty if that is unknown."""
        return ""

    def draining(self) -> Collection[str]:
        """The nodes that will go away soon, by id, as far as the cluster says so. Cheap, never blocks."""
        return ()

    def ask_to_save(self, worker: int, *, life_s: float = 0.0) -> None:
        """Ask a worker to save its pack soon, and from time to time as long as it lives.

        Args:
            worker: which one.
            life_s: the mean life of a node, where it should save as often as that requires; 0 where it may end soon.
        """
        return

    @abstractmethod
    def request(self, workers: int) -> None:
        """Announce that so many workers are wanted in all, so that an autoscaler may add nodes; 0 withdraws it."""

    @abstractmethod
    def close(self) -> None:
        """Kill all workers and release what the engine started. Idempotent."""
