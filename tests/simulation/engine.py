"""A simulated engine: nodes that come and go, workers that start, train and die, all at virtual times.

It decides nothing: it does what the pool tells it, and what a script of faults does to it. The nodes outlive the
driver: after `close` the next driver's pool may use the same engine.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from random import Random

from orchestrator.dispatch.base import Cause, Event, PackProgress, PackTask
from orchestrator.dispatch.engine import Engine, EngineEvent, NodeRoom, PackNews, WorkerDied, WorkerReady
from tests.simulation.dispatcher import VirtualClock

NOTICED_AFTER_S = 30.0
"""A node that is cut off for longer counts as dead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Death:
    """A worker's process ends."""

    cause: Cause
    error: str


class Forever(Enum):
    """What a training that never ends does next."""

    HANGS = "hangs"


Training = Iterator[tuple[float, Event | Death | Forever]]
"""What a worker does with a pack: seconds after the last event, and the event."""


@dataclass(eq=False)
class SimulatedNode:
    """A machine."""

    name: str
    room: int
    """Workers that fit on it."""
    alive: bool = True
    listed: bool = True
    """Whether the cluster lists it: the death of a node is noticed later."""
    joined: int = 1
    """How often it has joined: it gets another id each time."""
    silent_until_s: float = 0.0
    """Cut off: what its workers report arrives at this time."""
    held: list[tuple[SimulatedWorker, EngineEvent]] = field(default_factory=list)
    """What they have reported since then, in order."""
    stillborn: bool = False
    """Workers die while they start."""

    @property
    def id(self) -> str:
        """As the engine knows it."""
        return f"{self.name}/{self.joined}"


@dataclass(eq=False)
class SimulatedWorker:
    """A worker's process, or the wish for one while its node has no free slot."""

    number: int
    node: SimulatedNode
    placed: bool = False
    ready: bool = False
    dead: bool = False
    frozen: bool = False
    forgotten: bool = False
    """The pool has killed it, and hears nothing more of it."""
    packs: deque[PackTask] = field(default_factory=deque)
    """The packs it holds; the first one runs."""
    training: Training | None = None


class SimulatedEngine(Engine):
    """Nodes and workers on a virtual clock.

    Args:
        nodes: name -> number of workers that fit on it.
        train: what a worker does with a pack.
        clock: which waiting advances.
        random: of the time that workers take to start.
    """

    worker_needs = "1 CPU"

    def __init__(
        self,
        nodes: Mapping[str, int],
        *,
        train: Callable[[PackTask, SimulatedWorker], Training],
        clock: VirtualClock,
        random: Random,
    ) -> None:
        self.machines = {name: SimulatedNode(name, room) for name, room in nodes.items()}
        self.workers: dict[int, SimulatedWorker] = {}
        """All that live or wait for a slot."""
        self.clock = clock
        self.requested = 0
        """Workers announced to the autoscaler."""
        self.asked: dict[int, float] = {}
        """What workers were asked with (`ask_to_save`)."""
        self._train, self._random = train, random
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._news: deque[tuple[SimulatedWorker, EngineEvent]] = deque()

    # --- the engine ---

    def nodes(self) -> Mapping[str, NodeRoom]:
        """As the cluster lists them."""
        self._happen()
        return {
            node.id: NodeRoom(name=node.name, room=node.room, free=self._free(node))
            for node in self.machines.values()
            if node.listed
        }

    def start_worker(self, worker: int, node: str) -> None:
        """It starts when the node has a free slot."""
        machine = next((machine for machine in self.machines.values() if machine.id == node), None)
        if machine is None or not machine.listed:
            gone = SimulatedWorker(worker, SimulatedNode(node, 0))
            self._tell(gone, WorkerDied(worker=worker, cause=Cause.NODE_LOST, error=f"{node} is gone"))
            return
        self.workers[worker] = SimulatedWorker(worker, machine)
        self._place()

    def kill_worker(self, worker: int) -> None:
        """Its slot is free at once."""
        killed = self.workers.pop(worker, None)
        if killed is not None:
            killed.dead = killed.forgotten = True
            killed.training = None
            self._place()

    def start_pack(self, worker: int, task: PackTask) -> None:
        """A worker that has died meanwhile keeps silent: its death is on the way."""
        holder = self.workers.get(worker)
        if holder is not None:
            holder.packs.append(task)
            if len(holder.packs) == 1:
                self._begin(holder)

    def withdraw(self, worker: int, pack_id: str) -> None:
        """The pack has not begun."""
        holder = self.workers.get(worker)
        if holder is not None and len(holder.packs) > 1 and holder.packs[-1].pack_id == pack_id:
            holder.packs.pop()

    def wait(self, timeout_s: float) -> list[EngineEvent]:
        """Let time pass until there is news; everything that is due happens on the way."""
        until_s = self.clock() + timeout_s
        self._happen()
        while not self._waiting_news() and self.clock() < until_s:
            due_s = self._due[0][0] if self._due else until_s
            self.clock.wait(min(due_s, until_s) - self.clock())
            self._happen()
        news = [event for worker, event in self._news if not worker.forgotten]
        self._news.clear()
        return news

    def ask_to_save(self, worker: int, *, life_s: float = 0.0) -> None:
        """Remember it."""
        self.asked[worker] = life_s

    def request(self, workers: int) -> None:
        """Remember it."""
        self.requested = workers

    def close(self) -> None:
        """All workers end; the nodes stay."""
        for number in list(self.workers):
            self.kill_worker(number)
        self._news.clear()
        self.asked.clear()
        for node in self.machines.values():
            node.held.clear()  # a driver hears nothing of the workers of an earlier one
        self.requested = 0

    # --- what a script of faults does ---

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        """Call when the time has come."""
        heapq.heappush(self._due, (self.clock() + seconds, next(self._order), lambda: (call(), None)[1]))

    def hide(self, name: str) -> None:
        """A node has not joined yet."""
        node = self.machines[name]
        node.alive = node.listed = False

    def join(self, name: str) -> None:
        """A node joins, or comes back, without workers."""
        node = self.machines[name]
        if not node.alive:
            node.alive = node.listed = True
            node.joined += 1
            node.silent_until_s = 0.0

    def lose_node(self, name: str, *, error: str, noticed_after_s: float, back_after_s: float | None) -> None:
        """A machine dies with its workers; it may come back."""
        node = self.machines[name]
        if not node.alive:
            return
        node.alive = False
        lost = [worker for worker in self.workers.values() if worker.node is node]
        for worker in lost:
            worker.dead, worker.training = True, None

        def noticed() -> None:
            node.listed = False
            for worker in [worker for worker in self.workers.values() if worker.node is node]:
                self._die(worker, Death(cause=Cause.NODE_LOST, error=error))

        self.later(noticed_after_s, noticed)
        if back_after_s is not None:
            self.later(max(back_after_s, noticed_after_s + 0.1), lambda: self.join(name))

    def cut_off(self, name: str, seconds: float) -> None:
        """Nothing is heard of a node; after `NOTICED_AFTER_S` it counts as dead."""
        node = self.machines[name]
        if seconds >= NOTICED_AFTER_S:
            error = "the node was cut off"
            self.lose_node(name, error=error, noticed_after_s=NOTICED_AFTER_S, back_after_s=seconds)
        elif node.alive:
            node.silent_until_s = self.clock() + seconds

    def kill_process(self, worker: SimulatedWorker, death: Death, *, noticed_after_s: float) -> None:
        """A worker's process dies by itself."""
        worker.dead, worker.training = True, None
        self.later(noticed_after_s, lambda: self._die(worker, death))

    def freeze(self, worker: SimulatedWorker) -> None:
        """A worker's process stops without an end."""
        worker.frozen, worker.training = True, None

    @property
    def busy(self) -> list[SimulatedWorker]:
        """The workers that train a pack."""
        return [worker for worker in self.workers.values() if worker.training is not None]

    # --- inside ---

    def _happen(self) -> None:
        while self._due and self._due[0][0] <= self.clock():
            heapq.heappop(self._due)[2]()

    def _waiting_news(self) -> bool:
        return any(not worker.forgotten for worker, _ in self._news)

    def _tell(self, worker: SimulatedWorker, event: EngineEvent) -> None:
        """The pool hears of it now, or when the node is no longer cut off."""
        node = worker.node
        if not node.held and self.clock() >= node.silent_until_s:
            self._news.append((worker, event))
            return
        node.held.append((worker, event))
        if len(node.held) == 1:
            self.later(node.silent_until_s - self.clock(), lambda: self._heard(node))

    def _heard(self, node: SimulatedNode) -> None:
        """A node is no longer cut off, unless it was cut off again."""
        if self.clock() < node.silent_until_s:
            self.later(node.silent_until_s - self.clock(), lambda: self._heard(node))
            return
        self._news += node.held
        node.held.clear()

    def _free(self, node: SimulatedNode) -> int:
        return node.room - sum(worker.placed and worker.node is node for worker in self.workers.values())

    def _place(self) -> None:
        """Start the workers that wait for a slot that is free now."""
        taken: dict[str, int] = {}
        for worker in self.workers.values():
            taken[worker.node.name] = taken.get(worker.node.name, 0) + worker.placed
        for worker in self.workers.values():
            if not worker.placed and not worker.dead and taken[worker.node.name] < worker.node.room:
                worker.placed = True
                taken[worker.node.name] += 1
                self.later(self._random.uniform(0.3, 3.0), partial(self._started, worker))

    def _started(self, worker: SimulatedWorker) -> None:
        if worker.dead or not worker.node.alive:
            return  # its node has died, and that is noticed later
        if worker.node.stillborn:
            error = "ModuleNotFoundError: No module named 'orchestrator'"
            self._die(worker, Death(cause=Cause.WORKER_LOST, error=error))
            return
        worker.ready = True
        self._tell(worker, WorkerReady(worker=worker.number))
        self._begin(worker)

    def _begin(self, worker: SimulatedWorker) -> None:
        if worker.ready and worker.packs and not worker.frozen and not worker.dead:
            worker.training = self._train(worker.packs[0], worker)
            self._advance(worker, worker.training)

    def _advance(self, worker: SimulatedWorker, training: Training) -> None:
        seconds, event = next(training)
        if not isinstance(event, Forever):
            self.later(seconds, lambda: self._occurs(worker, training, event))

    def _occurs(self, worker: SimulatedWorker, training: Training, event: Event | Death) -> None:
        if worker.training is not training:
            return  # the worker or its node has died meanwhile, or it is frozen
        if isinstance(event, Death):
            self._die(worker, event)
            return
        self._tell(worker, PackNews(worker=worker.number, event=event))
        if isinstance(event, PackProgress):
            self._advance(worker, training)
            return
        worker.packs.popleft()
        worker.training = None
        self._begin(worker)

    def _die(self, worker: SimulatedWorker, death: Death) -> None:
        if worker.forgotten or self.workers.pop(worker.number, None) is None:
            return
        worker.dead, worker.training = True, None
        self._tell(worker, WorkerDied(worker=worker.number, cause=death.cause, error=death.error))
        self._place()
