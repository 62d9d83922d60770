"""Which pack runs on which worker of a pool."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from orchestrator.dispatch.base import PackTask
from orchestrator.dispatch.engine import Engine
from orchestrator.dispatch.health import NodeHealth
from orchestrator.dispatch.pace import UNEVEN, Paces, schedule
from orchestrator.dispatch.roster import Held, Roster, Worker
from orchestrator.dispatch.waiting import Silence

TAKE_BACK_S = 1.0
"""A pack that has waited this long behind another one goes to an idle worker."""
AVOID_S = 30.0
"""A retry waits this long for another node, if its own has since finished a trial."""
LONGEST_AVOID_S = 300.0
"""A retry waits no longer for another node: the run must not depend on it."""
AHEAD_UNEVEN = 8
"""Packs for each worker that are asked for where some workers are slow: the last ones are planned."""
ALONE_S = 60.0
"""A pack that should run alone waits this long for its node to be empty."""


@dataclass(slots=True)
class _Special:
    """A pack with wishes: see `PackTask.avoid_nodes`, `fresh_worker`, `alone`."""

    task: PackTask
    since: float


class Placement:
    """The packs that wait, and their way to the workers.

    Args:
        engine: receives the packs.
        roster: the workers.
        health: the standing of the nodes.
    """

    def __init__(self, engine: Engine, roster: Roster, health: NodeHealth) -> None:
        self._engine, self._roster, self._health = engine, roster, health
        self._queue: deque[PackTask] = deque()
        self._specials: dict[str, _Special] = {}
        self.paces = Paces()
        self._planned: tuple[object, dict[int, PackTask]] = None, {}
        """What the last plan was made for, and the next pack of each worker in it."""

    @property
    def uneven(self) -> bool:
        """Whether some workers are slower than others."""
        return bool(self._slow())

    def _slow(self) -> set[str]:
        """The nodes that are slower than the fastest one; they get short packs."""
        paces = {node: self.paces.of(node) for node in {worker.node for worker in self._roster.workers.values()}}
        least = min(paces.values(), default=1.0)
        return {node for node, pace in paces.items() if pace >= UNEVEN * least}

    @property
    def waiting(self) -> int:
        """Number of packs that no worker has."""
        return len(self._queue) + len(self._specials)

    def add(self, task: PackTask, now: float, *, first: bool = False) -> None:
        """Queue a pack, in front of the others if it is `first`; where nodes were lost, the longest ones come first.

        There a long pack is queued again and again: at the end of the queue, the run would end with it alone.
        """
        if task.avoid_nodes or task.fresh_worker or task.alone:
            self._specials[task.pack_id] = _Special(task, now)
        elif first:
            self._queue.appendleft(task)
        elif task.saving is not None and (task.saving.resumes or task.saving.life_s is not None):
            longer = [k for k, other in enumerate(self._queue) if other.expected_s >= task.expected_s]
            self._queue.insert(longer[-1] + 1 if longer else 0, task)
        else:
            self._queue.append(task)

    def requeue(self, worker: Worker) -> None:
        """Put the packs of a worker that is gone back to the front of the queue."""
        self._queue.extendleft(held.task for held in reversed(worker.packs))
        worker.packs.clear()

    def has_started(self, worker: Worker) -> None:
        """Of workers that start together, one for a retry may have got the GPU that the retry avoids."""
        if worker.reserved_for and (worker.shelved_on or self._avoids_gpu(worker)):
            worker.reserved_for = ""
            self._roster.alone.pop(worker.number, None)

    def clear(self) -> None:
        """Drop all packs."""
        self._queue.clear()
        self._specials.clear()

    def _give(self, worker: Worker, task: PackTask, now: float) -> None:
        worker.packs.append(Held(task, now, Silence.of(task, now), now, now))
        worker.used, worker.reserved_for = True, ""
        if task.alone:
            self._roster.alone[worker.number] = worker.node
        self._engine.start_pack(worker.number, task)

    def assign(self, now: float) -> None:
        """Give packs to workers: one to each idle worker, then a second, so that none waits for the driver."""
        if not self._queue and not self._specials:
            return
        idle = self._idle(now)
        if self._specials:
            self._assign_specials(idle, now)
        slow = self._slow()
        last = bool(slow) and self._sees_all()
        idle.sort(key=lambda worker: worker.node in slow)
        plan = self._plan(now) if last and idle and self._queue else {}
        for worker in idle:
            if not self._queue:
                break
            task = plan.get(worker.number) if last else self._queue[-1 if worker.node in slow else 0]
            if task is not None:
                self._queue.remove(task)
                self._give(worker, task, now)
        if self._queue and not last:
            closed = self._closed_nodes(now)
            for worker in self._roster.workers.values():
                if _continues(self._queue[0]):
                    break  # it waits for the first worker that becomes free, rather than for one of them
                free = worker.ready and len(worker.packs) == 1 and not worker.failures
                if free and worker.node not in closed | slow and not _continues(worker.packs[0].task):
                    self._give(worker, self._queue.popleft(), now)
                    if not self._queue:
                        break

    def _sees_all(self) -> bool:
        """Whether all packs that are left are likely to be here, and it is known how long they take."""
        held = sum(len(worker.packs) for worker in self._roster.workers.values())
        few = len(self._queue) + held < AHEAD_UNEVEN * len(self._roster.workers)
        return few and all(task.expected_s > 0 for task in self._queue)

    def _plan(self, now: float) -> dict[int, PackTask]:
        """The pack that each worker should take next, so that the last one ends early; those without one wait."""
        closed = self._closed_nodes(now)
        workers = [
            each
            for each in self._roster.workers.values()
            if each.ready and not (each.reserved_for or each.shelved_on) and each.node not in closed
        ]
        state = [(each.number, [held.task.pack_id for held in each.packs]) for each in workers]
        made_for = (int(now), state, [task.pack_id for task in self._queue])
        if self._planned[0] != made_for:
            paces = [self.paces.of(each.node) for each in workers]
            free_s = [self._left_s(each, pace, now) for each, pace in zip(workers, paces, strict=True)]
            chosen = schedule([task.expected_s for task in self._queue], free_s, paces)
            first: dict[int, PackTask] = {}
            for task, place in zip(self._queue, chosen, strict=True):
                first.setdefault(workers[place].number, task)
            self._planned = made_for, first
        return self._planned[1]

    def _left_s(self, worker: Worker, pace: float, now: float) -> float:
        """Seconds until the packs of a worker have ended; the later one is, the longer it may take."""
        if not worker.packs:
            return 0.0
        first_s, *rest_s = (held.task.expected_s * pace for held in worker.packs)
        ran_s = now - worker.packs[0].began
        return sum(rest_s) + (first_s - ran_s if ran_s < first_s else 2 * (ran_s - first_s))

    def _idle(self, now: float) -> list[Worker]:
        """The workers that can take a pack, those in the best standing first."""
        closed = self._closed_nodes(now)
        idle = [
            worker
            for worker in self._roster.workers.values()
            if worker.ready
            and not (worker.packs or worker.reserved_for or worker.shelved_on)
            and worker.node not in closed
        ]
        idle.sort(key=lambda worker: (worker.failures, self._health.failures(worker.node), worker.number))
        return idle

    def _closed_nodes(self, now: float) -> set[str]:
        """The nodes that get no pack now: paused ones, if another node is fine, and those of packs that run alone."""
        if not self._roster.alone and not self._health.any_paused(now):
            return self._roster.draining
        held = {worker.node for worker in self._roster.workers.values()}
        closed = {node for node in held if self._health.paused(node, now)}
        if closed == held or all(self._health.failures(node) for node in held - closed):
            closed = set()
        return closed | set(self._roster.alone.values()) | self._roster.draining

    def _assign_specials(self, idle: list[Worker], now: float) -> None:
        """Place the packs with wishes; workers that are taken leave `idle`."""
        reserved = {worker.reserved_for: worker for worker in self._roster.workers.values() if worker.reserved_for}
        for special in list(self._specials.values()):
            task = special.task
            worker = reserved.get(task.pack_id)
            if worker is None:
                worker = self._place(special, idle, now)
            if worker is not None and worker.ready:
                del self._specials[task.pack_id]
                self._give(worker, task, now)

    def _place(self, special: _Special, idle: list[Worker], now: float) -> Worker | None:
        """A worker for the pack, perhaps one that is started for it; None if it has to wait."""
        task = special.task
        late = now - special.since
        if task.alone and (self._queue or not idle):
            return None  # it runs when nothing else waits
        usable, avoid = self._roster.usable(now), self._roster.with_returned(task.avoid_nodes)
        elsewhere = {node for node in usable - avoid if self._roster.may_serve(node)}
        candidates = []
        for worker in idle:
            if task.fresh_worker and late < AVOID_S and self._avoids_gpu(worker):
                continue
            avoided = worker.node in avoid and bool(elsewhere)
            if avoided and late < (AVOID_S if self._health.is_proved(worker.node) else LONGEST_AVOID_S):
                continue
            if task.alone and late < ALONE_S and self._busy(worker.node):
                continue
            candidates.append(worker)
        other = bool(avoid)
        for worker in candidates:
            if not task.fresh_worker or not worker.used or (other and worker.node not in avoid):
                idle.remove(worker)
                return worker
        if candidates:  # a fresh worker is needed
            idle.remove(candidates[-1])
            fresh = self._roster.replace(candidates[-1], candidates[-1].node, now, reserved_for=task.pack_id)
            if task.alone:
                self._roster.alone[fresh.number] = fresh.node
            return fresh
        if idle and elsewhere and not any(worker.node in elsewhere for worker in self._roster.workers.values()):
            node = self._roster.node_for_worker(now, among=elsewhere)
            if node is not None:  # all workers are on nodes to avoid: one of them moves
                return self._roster.replace(idle.pop(), node, now, reserved_for=task.pack_id)
        return None

    def _avoids_gpu(self, worker: Worker) -> bool:
        """Whether a retry waits for another GPU: this one has had errors, and one that has had none has a worker.

        Or may have one: which GPU a worker gets is known when it is ready.
        """
        if not self._health.gpu_errors(worker.node, worker.gpu):
            return False
        others = (w for w in self._roster.workers.values() if w is not worker)
        return any(not w.ready or (w.gpu and not self._health.gpu_errors(w.node, w.gpu)) for w in others)

    def _busy(self, node: str) -> bool:
        return any(worker.packs for worker in self._roster.on(node))

    def take_back(self, now: float) -> None:
        """Take packs back that wait behind others while workers are idle."""
        if self._queue:
            return
        idle = len(self._idle(now))
        if not idle:
            return
        for worker in self._roster.workers.values():
            if len(worker.packs) > 1 and now - worker.packs[-1].since >= TAKE_BACK_S:
                self.take_back_from(worker)
                idle -= 1
                if not idle:
                    return

    def take_back_from(self, worker: Worker) -> None:
        """Take the pack back that waits behind another one on this worker, if one does."""
        if len(worker.packs) > 1:
            held = worker.packs.pop()
            self._engine.withdraw(worker.number, held.task.pack_id)
            self._queue.append(held.task)


def _continues(task: PackTask) -> bool:
    """Whether a pack goes on from checkpoints."""
    return task.saving is not None and task.saving.resumes
