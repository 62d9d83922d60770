"""The workers of a pool and the nodes that they run on: where workers start, move and end."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.dispatch.base import PackTask
from orchestrator.dispatch.capacity import share_of
from orchestrator.dispatch.engine import Engine, NodeRoom
from orchestrator.dispatch.health import (
    STILLBORN_LIMIT,
    STILLBORN_LIMIT_OF_CLUSTER,
    STILLBORN_LIMIT_ONCE_LIVED,
    NodeHealth,
)
from orchestrator.dispatch.versions import JobVersions
from orchestrator.dispatch.waiting import Silence
from orchestrator.errors import Outage, UserError
from orchestrator.printable import last_line

STUCK_S = 30.0
"""A worker that has been starting for this long is moved to a node with free resources, if there is one."""
GONE_S = 30.0
"""A node that has been missing for this long has taken its workers with it."""


@dataclass(slots=True)
class Held:
    """A pack that a worker has."""

    task: PackTask
    since: float
    """When it was given to the worker."""
    silence: Silence
    member_since: float
    """When it began, or its last trial ended."""
    began: float
    """When it began; if it waits behind another pack, when it was given to the worker."""

    def begin(self, now: float) -> None:
        """The worker starts it."""
        self.began = self.member_since = now
        self.silence.news(now)

    def shift(self, seconds: float) -> None:
        """Do not count some seconds."""
        self.member_since += seconds
        self.silence.shift(seconds)


@dataclass(eq=False, slots=True)
class Worker:
    """A worker that runs or starts."""

    number: int
    node: str
    started_at: float
    reserved_for: str = ""
    """The pack that it was started for."""
    ready: bool = False
    used: bool = False
    """Whether a pack has run on it."""
    failures: int = 0
    """Failed trials and packs since its last success."""
    failing_since: float = 0.0
    sticky: bool = False
    """Whether its process cannot use its device any more."""
    gpu: str = ""
    """As its node calls it; empty if it has none."""
    life_s: float = 0.0
    """The mean life of a node that it was told; 0 for none."""
    idle_since: float | None = None
    """Since when it has been seen without a pack."""
    shelved_on: str = ""
    """The GPU on which it gets no packs: it lives so that no other worker gets that GPU."""
    packs: deque[Held] = field(default_factory=deque)
    """The first one runs."""


class Roster:
    """The workers and nodes of a pool.

    Args:
        engine: starts and stops workers.
        wanted: number of workers; None for as many as the nodes hold.
        grows: whether nodes may join that are not there yet.
        health: the standing of the nodes.
        versions: the nodes with another version of the job.
        max_share: the share of the nodes' room that may be used.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        wanted: int | None,
        grows: bool,
        health: NodeHealth,
        versions: JobVersions,
        max_share: float = 1.0,
    ) -> None:
        self._engine, self._wanted, self.grows, self._health = engine, wanted, grows, health
        self._versions, self._max_share = versions, max_share
        self.surplus = 0
        """Workers beyond the share, since nodes have left."""
        self.resting = False
        """Whether idle workers were released: no other ones are started until packs wait."""
        self.draining: set[str] = set()
        """Nodes that are going away: they get no new worker and no new pack."""
        self.workers: dict[int, Worker] = {}
        self.nodes: Mapping[str, NodeRoom] = {}
        self.alone: dict[int, str] = {}
        """Workers whose pack should run alone, or that are started for such a pack, and their nodes."""
        self.requested = 0
        """Workers that an autoscaler was asked for."""
        self._gone_since: dict[str, float] = {}
        """Nodes that are missing although workers run on them."""
        self._held: Counter[str] = Counter()
        """Workers of each node."""
        self._starting: Counter[str] = Counter()
        """Those of them that have not started yet."""
        self._numbers = 0
        self._names: dict[str, str] = {}
        """Of every node that was there."""

    # --- what is there ---

    @property
    def planned(self) -> int:
        """The workers that a growing cluster may come to have, as far as a number was set."""
        return self._wanted or 0 if self.grows else 0

    def ready(self) -> int:
        """Number of workers that have started."""
        return len(self.workers) - self._starting.total()

    def count(self, node: str) -> int:
        """Number of workers of a node."""
        return self._held[node]

    def name(self, node: str) -> str:
        """The node as it is shown to the user."""
        return self._names.get(node, node[:12])

    def on(self, node: str) -> list[Worker]:
        """The workers of a node."""
        return [worker for worker in self.workers.values() if worker.node == node]

    def usable(self, now: float) -> set[str]:
        """The nodes that may hold workers: excluded ones only if there is no other."""
        with_room = {
            name
            for name, node in self.nodes.items()
            if node.room > 0 and name not in self.draining and not self._versions.differs(name)
        }
        return {name for name in with_room if not self._health.excluded(name, now)} or with_room

    def with_returned(self, avoided: frozenset[str]) -> frozenset[str]:
        """These nodes, and those that are the same machines come back under another id."""
        gone = {self._names[node] for node in avoided if node not in self.nodes and node in self._names}
        return avoided | {node for node, room in self.nodes.items() if room.name in gone} if gone else avoided

    def may_serve(self, node: str) -> bool:
        """Whether a worker lives there, or is likely to start there."""
        return self._health.start_failures(node) < STILLBORN_LIMIT or any(worker.ready for worker in self.on(node))

    def stuck(self) -> int:
        """Number of workers that cannot start, because other programs use the resources of their node."""
        nodes = self.nodes
        return sum(not w.ready and w.node in nodes and nodes[w.node].free == 0 for w in self.workers.values())

    # --- start and end ---

    def start(self, node: str, now: float, *, reserved_for: str = "") -> Worker:
        """Start a worker."""
        self._numbers += 1
        worker = Worker(self._numbers, node, now, reserved_for)
        self.workers[worker.number] = worker
        self._held[node] += 1
        self._starting[node] += 1
        self._engine.start_worker(worker.number, node)
        return worker

    def has_started(self, worker: Worker) -> None:
        """The worker is ready."""
        if not worker.ready:
            worker.ready = True
            self._starting[worker.node] -= 1

    def forget(self, worker: Worker) -> None:
        """Remove a worker that has ended."""
        del self.workers[worker.number]
        self._held[worker.node] -= 1
        self._starting[worker.node] -= not worker.ready
        self.alone.pop(worker.number, None)

    def dismiss(self, worker: Worker) -> None:
        """End a worker."""
        self.forget(worker)
        self._engine.kill_worker(worker.number)

    def replace(self, worker: Worker, node: str, now: float, *, reserved_for: str = "") -> Worker:
        """End a worker, and start another one on this node."""
        self.dismiss(worker)
        return self.start(node, now, reserved_for=reserved_for)

    def clear(self) -> None:
        """Forget all workers."""
        for worker in list(self.workers.values()):
            self.forget(worker)

    # --- follow the nodes ---

    def look(self) -> None:
        """See which nodes are there."""
        self.nodes = self._engine.nodes()
        self._names.update((node, room.name) for node, room in self.nodes.items())
        self._health.keep(set(self.nodes))

    def gone(self, now: float) -> list[Worker]:
        """The workers whose nodes have been missing for a while."""
        missing = {worker.node for worker in self.workers.values()} - self.nodes.keys()
        self._gone_since = {node: self._gone_since.get(node, now) for node in missing}
        return [worker for worker in self.workers.values() if now - self._gone_since.get(worker.node, now) >= GONE_S]

    def fill(self, now: float) -> int:
        """Start as many workers as are wanted and the nodes hold; return how many they hold.

        Raises:
            UserError: no worker can live on any node.
            Outage: none can any more.
        """
        self._move_stuck(now)
        for worker in self.workers.values():
            if worker.shelved_on and not self._health.gpu_paused(worker.node, worker.shelved_on, now):
                worker.shelved_on = ""  # trials may have failed there by their own fault; another error is enough
        if self.workers and all(worker.ready and worker.shelved_on for worker in self.workers.values()):
            for worker in list(self.workers.values()):  # a GPU that may fail again is better than none
                self.dismiss(worker)
        usable = self.usable(now)
        capacity = sum(self.nodes[node].room for node in usable)
        target = share_of(capacity, self._max_share)
        if self._wanted is not None:
            target = min(target, self._wanted)
        serving = sum(not worker.shelved_on for worker in self.workers.values())
        self.surplus = max(0, serving - target) if self._max_share < 1 else 0
        if self.resting:
            target = min(target, max(1, len(self.workers)))
        while len(self.workers) < target:
            node = self.node_for_worker(now, among=usable)
            if node is None:
                break
            self.start(node, now)
        if not self.workers:
            self._give_up(usable)
        return capacity

    def _move_stuck(self, now: float) -> None:
        """Move workers that cannot start, because other programs use their node, to nodes with free resources."""
        free = {name: node.free or 0 for name, node in self.nodes.items()}
        for worker in list(self.workers.values()):
            node = self.nodes.get(worker.node)
            if worker.ready or now - worker.started_at < STUCK_S or node is None or node.free != 0:
                continue
            target = self.node_for_worker(now, among={name for name, count in free.items() if count > 0})
            if target is not None:
                free[target] -= 1
                self.replace(worker, target, now, reserved_for=worker.reserved_for)

    def node_for_worker(self, now: float, *, among: set[str]) -> str | None:
        """The best node for a new worker; None if none has room, or all have to wait after failed starts."""
        best: tuple[float, ...] | None = None
        chosen = None
        for name in sorted(among):
            node, failures = self.nodes[name], self._health.start_failures(name)
            full = self._held[name] >= node.room or (failures and self._starting[name])  # after a failure, one tries
            if full or name in self.draining or self._health.may_start_in_s(name, now) > 0:
                continue
            in_use = node.free is not None and node.free <= self._starting[name]
            rank = (float(in_use), float(failures), self._held[name] / node.room)
            if best is None or rank < best:
                best, chosen = rank, name
        return chosen

    def request(self, packs: int, capacity: int) -> None:
        """Announce the workers that are missing for these packs, so that an autoscaler adds nodes.

        Nodes that have come are asked for until their workers have started: they are idle for so long. A sweep with a
        share asks for its share of the packs. It holds the nodes that its workers are that share of as long as packs
        wait: otherwise those that it does not use would leave, and the share would become smaller with each.
        """
        if not self.grows:
            return
        wanted, there = packs if self._wanted is None else self._wanted, capacity
        if self._max_share < 1 and packs:
            there = sum(not worker.shelved_on for worker in self.workers.values())
            if self._wanted is None:
                wanted = share_of(packs, self._max_share)
            wanted = max(wanted, min(capacity, math.ceil(there / self._max_share)))
        missing = wanted > there or (self.requested > 0 and self._starting.total() > 0)
        self._request(wanted if missing and not self.resting else 0)

    def withdraw(self) -> None:
        """Announce that no more workers are needed."""
        self._request(0)

    def _request(self, workers: int) -> None:
        if workers != self.requested:
            self.requested = workers
            self._engine.request(workers)

    def _give_up(self, usable: Iterable[str]) -> None:
        """End the run if no worker can live anywhere."""
        nodes = sorted(usable)
        if not nodes and (other := self._versions.error(self.nodes)):
            raise other
        if not nodes and not self.grows:
            raise UserError(
                f"no worker fits: one needs {self._engine.worker_needs}",
                place="resources",
                next_step="lower resources.cpus_per_worker, or set resources.device to cpu",
            )
        limit = STILLBORN_LIMIT_OF_CLUSTER if self.grows else STILLBORN_LIMIT
        if self._health.lived:
            limit = STILLBORN_LIMIT_ONCE_LIVED
        if not nodes or any(self._health.start_failures(node) < limit for node in nodes):
            return
        error = last_line(self._health.start_error(nodes[0]))
        where = "on this machine"
        if self.grows:
            where = f"on each of {len(nodes)} nodes" if len(nodes) > 1 else f"on node {self.name(nodes[0])}"
        what = f"workers died while starting, {limit} times in a row {where}"
        if not self.grows and not self._health.lived:
            raise UserError(what, place="resources", next_step=f"correct what the last error names: {error}")
        raise Outage(
            f"{what}: {error}",
            next_step=f"{self.remedy(nodes[0])}, then run the same command again when the cluster is well",
        )

    def remedy(self, node: str) -> str:
        """What a user can do about a node on which workers die while starting."""
        error = self._health.start_error(node)
        if "ModuleNotFoundError" in error or "ImportError" in error:
            return (
                "every node needs phasefront in the Python environment of Ray, or the project in the job's working "
                "directory (`ray job submit --working-dir .`)"
            )
        return f"see Ray's logs on {self.name(node)} (by default in /tmp/ray/session_latest/logs)"
