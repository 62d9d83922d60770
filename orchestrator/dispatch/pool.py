"""A pool of warm workers on any engine: which worker starts where, which pack runs on it, and what happens if it dies.

All decisions are here; they depend on events and on the clock that is passed in, so that they are the same on Ray and
in a simulation.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.dispatch.base import Cause, Dispatcher, Event, PackFailed, PackProgress, PackTask
from orchestrator.dispatch.engine import Engine, EngineEvent, NodeRoom, PackNews, WorkerDied, WorkerReady
from orchestrator.dispatch.health import STILLBORN_LIMIT, NodeHealth
from orchestrator.dispatch.output import with_output
from orchestrator.dispatch.source import Source
from orchestrator.dispatch.versions import JobVersions
from orchestrator.dispatch.waiting import Silence, Waiting
from orchestrator.errors import UserError
from orchestrator.records import Status

LOOK_S = 5.0
"""How often the nodes are looked at."""
CHECK_S = 1.0
"""How often deadlines and silences are checked."""
TAKE_BACK_S = 1.0
"""A pack that has waited this long behind another one goes to an idle worker."""
AVOID_S = 30.0
"""A retry waits this long for another node, if its own has since finished a trial."""
LONGEST_AVOID_S = 300.0
"""A retry waits no longer for another node: the run must not depend on it."""
ALONE_S = 60.0
"""A pack that should run alone waits this long for its node to be empty."""
GRACE_S = 5.0
"""Beyond `PackTask.timeout_s`: results are on their way for a while (`worker.FLUSH_S`)."""
STUCK_S = 30.0
"""A worker that has been starting for this long is moved to a node with free resources, if there is one."""
GONE_S = 30.0
"""A node that has been missing for this long has taken its workers with it."""
STALL_S = 5.0
"""A longer time between two polls is the driver's own: it counts as nobody's silence."""
FAILURES_BEFORE_REPLACEMENT = 5
"""Failures in a row of one worker, while others succeed, before it is replaced."""
STICKY = ("CUDA error", "device-side assert", "unspecified launch failure", "CUDNN_STATUS", "CUBLAS_STATUS")
"""Errors after which a process cannot use its device any more."""


@dataclass(slots=True)
class _Held:
    """A pack that a worker has."""

    task: PackTask
    since: float
    """When it was given to the worker."""
    silence: Silence
    member_since: float = 0.0
    """When it began, or its last trial ended."""


@dataclass(eq=False, slots=True)
class _Worker:
    number: int
    node: str
    started_at: float
    ready: bool = False
    used: bool = False
    """Whether a pack has run on it."""
    reserved_for: str = ""
    """The pack that it was started for."""
    failures: int = 0
    """Failed trials and packs since its last success."""
    failing_since: float = 0.0
    sticky: bool = False
    """Whether its process cannot use its device any more."""
    packs: deque[_Held] = field(default_factory=deque)
    """The first one runs."""


@dataclass(slots=True)
class _Special:
    """A pack with wishes: see `PackTask.avoid_nodes`, `fresh_worker`, `alone`."""

    task: PackTask
    since: float


class PooledDispatcher(Dispatcher):
    """A pool of workers.

    Args:
        engine: starts and stops workers.
        workers: how many; None for as many as the nodes hold, following nodes that come and go.
        grows: whether nodes may join that are not there yet, so that it is worth waiting for them.
        source: the driver's source of the job, which workers must have; None to accept any.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        workers: int | None,
        grows: bool = True,
        source: Source | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._wanted, self._grows, self._clock = engine, workers, grows, clock
        self._workers: dict[int, _Worker] = {}
        self._nodes: Mapping[str, NodeRoom] = {}
        self._gone_since: dict[str, float] = {}
        """Nodes that are missing although workers run on them."""
        self._lost: set[str] = set()
        """Nodes that died, each of which is mentioned once."""
        self._health = NodeHealth()
        self._versions = JobVersions(source, local=not grows)
        self._queue: deque[PackTask] = deque()
        self._specials: dict[str, _Special] = {}
        self._alone: dict[int, str] = {}
        """Workers whose pack should run alone, or that are started for such a pack, and their nodes."""
        self._numbers = 0
        self._notices: list[str] = []
        self._waiting = Waiting(engine.worker_needs)
        self._last_success: tuple[float, int] = (float("-inf"), 0)
        """When a trial last finished, and the number of its worker."""
        self._requested = 0
        self._looked = self._checked = float("-inf")
        self._polled = clock()
        self._closed = False
        self._look(self._polled, [])

    # --- the contract of a dispatcher ---

    @property
    def workers(self) -> int:
        """Workers that run, or have been starting for a short time."""
        now = self._clock()
        return max(1, sum(w.ready or now - w.started_at < STUCK_S for w in self._workers.values()))

    @property
    def note(self) -> str:
        """How many workers are ready, where some are not."""
        ready = sum(worker.ready for worker in self._workers.values())
        return f"{ready} of {len(self._workers)} workers ready" if ready < len(self._workers) else ""

    def running(self) -> Collection[str]:
        """The first pack of each worker."""
        return [worker.packs[0].task.pack_id for worker in self._workers.values() if worker.packs]

    def notices(self) -> list[str]:
        """Nodes and workers that were replaced or excluded, packs without news, and reasons for waiting."""
        said, self._notices = self._notices, []
        return said

    def submit(self, tasks: Sequence[PackTask]) -> None:
        """Queue packs, and give them to idle workers."""
        now = self._clock()
        for task in tasks:
            self._enqueue(self._versions.stamped(task), now)
        self._assign(now)

    def poll(self, timeout_s: float) -> list[Event]:
        """Return the packs' events; replace workers that died, and start workers on nodes that joined.

        Raises:
            UserError: no worker can start on any node.
            Outage: the engine is gone.
        """
        now = self._clock()
        self._forgive_stall(now)
        events: list[Event] = []
        self._look(now, events)
        self._take_back(now)
        self._assign(now)
        happened = self._engine.wait(timeout_s)
        now = self._clock()
        for event in happened:
            self._apply(event, events, now)
        if now - self._checked >= CHECK_S:
            self._checked = now
            self._check_deadlines(now, events)
            self._say_waiting(now, progress=bool(happened))
        self._assign(now)
        self._polled = now
        return events

    def await_ready(self, *, timeout_s: float, all_of_them: bool) -> None:
        """Wait until the first worker, or every worker, has started; at most `timeout_s`.

        Raises:
            See `poll`.
        """
        end = self._clock() + timeout_s
        while (left_s := end - self._clock()) > 0:
            self.poll(min(left_s, 0.2))
            ready = sum(worker.ready for worker in self._workers.values())
            if ready and (ready == len(self._workers) or not all_of_them):
                return

    def close(self) -> None:
        """Kill the workers and release the engine."""
        if self._closed:
            return
        self._closed = True
        self._queue.clear()
        self._specials.clear()
        self._workers.clear()
        try:
            if self._requested:
                self._engine.request(0)
        finally:
            self._engine.close()

    # --- packs ---

    def _enqueue(self, task: PackTask, now: float) -> None:
        if task.avoid_nodes or task.fresh_worker or task.alone:
            self._specials[task.pack_id] = _Special(task, now)
        else:
            self._queue.append(task)

    def _give(self, worker: _Worker, task: PackTask, now: float) -> None:
        worker.packs.append(_Held(task, now, Silence.of(task, now), now))
        worker.used, worker.reserved_for = True, ""
        if task.alone:
            self._alone[worker.number] = worker.node
        self._engine.start_pack(worker.number, task)

    def _assign(self, now: float) -> None:
        """Give packs to workers: one to each idle worker, then a second, so that none waits for the driver."""
        if not self._queue and not self._specials:
            return
        idle = self._idle(now)
        if self._specials:
            self._assign_specials(idle, now)
        for worker in idle:
            if not self._queue:
                break
            self._give(worker, self._queue.popleft(), now)
        if self._queue:
            closed = self._closed_nodes(now)
            for worker in self._workers.values():
                if worker.ready and len(worker.packs) == 1 and not worker.failures and worker.node not in closed:
                    self._give(worker, self._queue.popleft(), now)
                    if not self._queue:
                        break

    def _idle(self, now: float) -> list[_Worker]:
        """The workers that can take a pack, those in the best standing first."""
        closed = self._closed_nodes(now)
        idle = [
            worker
            for worker in self._workers.values()
            if worker.ready and not worker.packs and not worker.reserved_for and worker.node not in closed
        ]
        idle.sort(key=lambda worker: (worker.failures, self._health.failures(worker.node), worker.number))
        return idle

    def _closed_nodes(self, now: float) -> set[str]:
        """The nodes that get no pack now: paused ones, if another node is fine, and those of packs that run alone."""
        if not self._alone and not self._health.any_paused(now):
            return set()
        held = {worker.node for worker in self._workers.values()}
        closed = {node for node in held if self._health.paused(node, now)}
        if closed == held or all(self._health.failures(node) for node in held - closed):
            closed = set()
        return closed | set(self._alone.values())

    def _assign_specials(self, idle: list[_Worker], now: float) -> None:
        """Place the packs with wishes; workers that are taken leave `idle`."""
        reserved = {worker.reserved_for: worker for worker in self._workers.values() if worker.reserved_for}
        for special in list(self._specials.values()):
            task = special.task
            worker = reserved.get(task.pack_id)
            if worker is None:
                worker = self._place(special, idle, now)
            if worker is not None and worker.ready:
                del self._specials[task.pack_id]
                self._give(worker, task, now)

    def _place(self, special: _Special, idle: list[_Worker], now: float) -> _Worker | None:
        """A worker for the pack, perhaps one that is started for it; None if it has to wait."""
        task = special.task
        late = now - special.since
        if task.alone and (self._queue or not idle):
            return None  # it runs when nothing else waits
        usable = self._usable(now)
        elsewhere = {node for node in usable - task.avoid_nodes if self._may_serve(node)}
        patience_s = LONGEST_AVOID_S if any(self._health.failures(node) for node in task.avoid_nodes) else AVOID_S
        candidates = []
        for worker in idle:
            avoided = worker.node in task.avoid_nodes and bool(elsewhere)
            if avoided and late < patience_s:
                continue
            if task.alone and late < ALONE_S and self._busy(worker.node):
                continue
            candidates.append(worker)
        other = bool(task.avoid_nodes)
        for worker in candidates:
            if not task.fresh_worker or not worker.used or (other and worker.node not in task.avoid_nodes):
                idle.remove(worker)
                return worker
        if candidates:  # a fresh worker is needed
            idle.remove(candidates[-1])
            fresh = self._replace(candidates[-1], candidates[-1].node, now, reserved_for=task.pack_id)
            if task.alone:
                self._alone[fresh.number] = fresh.node
            return fresh
        if idle and elsewhere and not any(worker.node in elsewhere for worker in self._workers.values()):
            node = self._node_for_worker(now, among=elsewhere)
            if node is not None:  # all workers are on nodes to avoid: one of them moves
                return self._replace(idle.pop(), node, now, reserved_for=task.pack_id)
        return None

    def _may_serve(self, node: str) -> bool:
        """Whether a worker lives there, or is likely to start there."""
        lives = any(worker.ready and worker.node == node for worker in self._workers.values())
        return lives or self._health.start_failures(node) < STILLBORN_LIMIT

    def _busy(self, node: str) -> bool:
        return any(worker.packs for worker in self._workers.values() if worker.node == node)

    def _take_back(self, now: float) -> None:
        """Take packs back that wait behind others while workers are idle."""
        if self._queue:
            return
        idle = len(self._idle(now))
        if not idle:
            return
        for worker in self._workers.values():
            if len(worker.packs) > 1 and now - worker.packs[-1].since >= TAKE_BACK_S:
                held = worker.packs.pop()
                self._engine.withdraw(worker.number, held.task.pack_id)
                self._queue.append(held.task)
                idle -= 1
                if not idle:
                    return

    # --- events ---

    def _apply(self, happened: EngineEvent, events: list[Event], now: float) -> None:
        worker = self._workers.get(happened.worker)
        if worker is None:
            return  # it was killed meanwhile
        if isinstance(happened, WorkerReady):
            worker.ready = True
            self._health.started(worker.node)
        elif isinstance(happened, WorkerDied):
            self._bury(worker, happened, events, now)
        else:
            self._take_news(worker, happened, events, now)

    def _take_news(self, worker: _Worker, happened: PackNews, events: list[Event], now: float) -> None:
        event = happened.event
        if not worker.packs or worker.packs[0].task.pack_id != event.pack_id:
            return
        if isinstance(event, PackFailed) and event.cause is Cause.OTHER_SOURCE:
            self._refused(worker, event, now)
            return
        held = worker.packs[0]
        if isinstance(event, PackProgress):
            if event.rows is not None or event.results:
                held.silence.news(now)
            if event.results:
                held.member_since = now
                event = self._note_results(worker, held, event, now)
            events.append(event)
            return
        worker.packs.popleft()
        self._alone.pop(worker.number, None)
        if worker.packs:
            worker.packs[0].member_since = now
            worker.packs[0].silence.news(now)
        if isinstance(event, PackFailed):
            event = replace(event, node=worker.node)
            worker.sticky |= is_sticky(event.error)
            if event.cause is Cause.USER_ERROR:
                self._note_failure(worker, now)
        events.append(event)
        if isinstance(event, PackFailed) and event.cause is Cause.TIMED_OUT:
            self._replace(worker, worker.node, now)  # it may still be in the trial
        else:
            self._consider(worker, now)

    def _refused(self, worker: _Worker, event: PackFailed, now: float) -> None:
        """End a worker with another version of the job; its packs wait for another worker."""
        task = worker.packs.popleft().task
        if text := self._versions.refused(worker.node, self._name(worker.node), event):
            self._say(text)
        self._dismiss(worker)
        if task.avoid_nodes or task.fresh_worker or task.alone:
            self._enqueue(task, now)
        else:
            self._queue.appendleft(task)
        self._looked = float("-inf")

    def _note_results(self, worker: _Worker, held: _Held, event: PackProgress, now: float) -> PackProgress:
        failed = False
        for result in event.results:
            if result.status is Status.FINISHED:
                worker.failures = 0
                self._health.succeeded(worker.node)
                self._last_success = (now, worker.number)
                for node in held.task.avoid_nodes - {worker.node}:
                    if self._health.refuted(node, now):
                        self._exclude(node)
            elif result.status is Status.FAILED:
                failed = True
                self._note_failure(worker, now)
                worker.sticky |= is_sticky(result.error or "")
        return replace(event, node=worker.node) if failed else event

    def _note_failure(self, worker: _Worker, now: float) -> None:
        if not worker.failures:
            worker.failing_since = now
        worker.failures += 1
        on_node = sum(other.node == worker.node for other in self._workers.values())
        self._health.failed(worker.node, workers=on_node, now=now)

    def _consider(self, worker: _Worker, now: float) -> None:
        """Replace a worker whose pack has ended, if it should not get another one."""
        others_succeed = self._last_success[0] >= worker.failing_since and self._last_success[1] != worker.number
        if worker.sticky or (worker.failures >= FAILURES_BEFORE_REPLACEMENT and others_succeed):
            reason = "its device reports an error" if worker.sticky else f"{worker.failures} failures in a row"
            self._say(f"a worker on {self._name(worker.node)} is replaced: {reason}")
            self._replace(worker, worker.node, now)
        elif self._health.excluded(worker.node, now) and worker.node not in self._usable(now):
            self._dismiss(worker)

    def _bury(self, worker: _Worker, death: WorkerDied, events: list[Event], now: float) -> None:
        """Replace a dead worker: the pack that ran is lost, the one that waited goes back to the queue."""
        self._forget(worker)
        if death.cause is Cause.NODE_LOST and worker.node not in self._lost:
            self._lost.add(worker.node)
            self._say(f"node {self._name(worker.node)} was lost; its trials are run again")
        if death.cause is not Cause.NODE_LOST and not worker.used:
            self._health.start_failed(worker.node, started_at=worker.started_at, now=now, error=death.error)
        if worker.packs:
            task = worker.packs.popleft().task
            events.append(PackFailed(pack_id=task.pack_id, cause=death.cause, error=death.error, node=worker.node))
        self._requeue(worker)
        self._looked = float("-inf")

    def _requeue(self, worker: _Worker) -> None:
        """Put the packs of a worker that is gone back to the front of the queue."""
        self._queue.extendleft(held.task for held in reversed(worker.packs))
        worker.packs.clear()

    def _forget(self, worker: _Worker) -> None:
        del self._workers[worker.number]
        self._alone.pop(worker.number, None)

    def _dismiss(self, worker: _Worker) -> None:
        self._forget(worker)
        self._engine.kill_worker(worker.number)
        self._requeue(worker)

    def _replace(self, worker: _Worker, node: str, now: float, *, reserved_for: str = "") -> _Worker:
        self._dismiss(worker)
        return self._start(node, now, reserved_for=reserved_for)

    # --- workers and nodes ---

    def _usable(self, now: float) -> set[str]:
        """The nodes that may hold workers: excluded ones only if there is no other."""
        with_room = {name for name, node in self._nodes.items() if node.room > 0 and not self._versions.differs(name)}
        return {name for name in with_room if not self._health.excluded(name, now)} or with_room

    def _look(self, now: float, events: list[Event]) -> None:
        """See which nodes are there, and start as many workers as they hold."""
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        self._nodes = self._engine.nodes()
        self._health.keep(set(self._nodes))
        self._miss(now, events)
        self._move_stuck(now)
        usable = self._usable(now)
        capacity = sum(self._nodes[node].room for node in usable)
        target = capacity if self._wanted is None else min(capacity, self._wanted)
        while len(self._workers) < target:
            node = self._node_for_worker(now, among=usable)
            if node is None:
                break
            self._start(node, now)
        if not self._workers:
            self._give_up(usable)
        self._request(capacity)

    def _miss(self, now: float, events: list[Event]) -> None:
        """Give up workers on nodes that have been missing for a while, even if the engine does not say so."""
        missing = {worker.node for worker in self._workers.values()} - self._nodes.keys()
        self._gone_since = {node: self._gone_since.get(node, now) for node in missing}
        for worker in list(self._workers.values()):
            if now - self._gone_since.get(worker.node, now) >= GONE_S:
                self._engine.kill_worker(worker.number)
                death = WorkerDied(worker=worker.number, cause=Cause.NODE_LOST, error="the node left the cluster")
                self._bury(worker, death, events, now)

    def _move_stuck(self, now: float) -> None:
        """Move workers that cannot start, because other programs use their node, to nodes with free resources."""
        free = {name: node.free or 0 for name, node in self._nodes.items()}
        for worker in list(self._workers.values()):
            node = self._nodes.get(worker.node)
            if worker.ready or now - worker.started_at < STUCK_S or node is None or node.free != 0:
                continue
            target = self._node_for_worker(now, among={name for name, count in free.items() if count > 0})
            if target is not None:
                free[target] -= 1
                self._replace(worker, target, now, reserved_for=worker.reserved_for)

    def _node_for_worker(self, now: float, *, among: set[str]) -> str | None:
        """The best node for a new worker; None if none has room, or all have to wait after failed starts."""
        held = Counter(worker.node for worker in self._workers.values())
        best: tuple[float, ...] | None = None
        chosen = None
        for name in sorted(among):
            node, failures = self._nodes[name], self._health.start_failures(name)
            room = min(node.room, 1) if failures else node.room  # after a failed start, one worker tries
            if held[name] >= room or self._health.may_start_in_s(name, now) > 0:
                continue
            starting = sum(not w.ready and w.node == name for w in self._workers.values())
            full = node.free is not None and node.free <= starting
            rank = (float(full), float(failures), held[name] / node.room)
            if best is None or rank < best:
                best, chosen = rank, name
        return chosen

    def _start(self, node: str, now: float, *, reserved_for: str = "") -> _Worker:
        self._numbers += 1
        worker = _Worker(self._numbers, node, now, reserved_for=reserved_for)
        self._workers[worker.number] = worker
        self._engine.start_worker(worker.number, node)
        return worker

    def _give_up(self, usable: Iterable[str]) -> None:
        """End the run if no worker can live anywhere."""
        nodes = sorted(usable)
        if not nodes and (other := self._versions.error(self._nodes)):
            raise other
        if not nodes and not self._grows:
            raise UserError(
                f"no worker fits: one needs {self._engine.worker_needs}",
                place="resources",
                next_step="lower resources.cpus_per_worker, or set resources.device to cpu",
            )
        if nodes and all(self._health.start_failures(node) >= STILLBORN_LIMIT for node in nodes):
            error = self._health.start_error(nodes[0]).strip()
            where = "on this machine" if not self._grows else f"on each of {len(nodes)} nodes"
            raise UserError(
                f"workers died while starting, {STILLBORN_LIMIT} times in a row {where}",
                place="resources",
                next_step=(
                    "on a cluster, every node needs phasefront in the Python environment of Ray, or the project in "
                    f"the job's working directory (`ray job submit --working-dir .`). Ray said: {error}"
                ),
            )

    def _exclude(self, node: str) -> None:
        self._say(
            f"node {self._name(node)} is excluded for 30 minutes: trials that failed there succeed on other nodes"
        )
        for worker in list(self._workers.values()):
            if worker.node == node and not worker.packs:
                self._dismiss(worker)
        self._looked = float("-inf")

    def _request(self, capacity: int) -> None:
        """Announce the workers that are missing, so that an autoscaler adds nodes."""
        if not self._grows:
            return
        busy = sum(len(worker.packs) > 0 for worker in self._workers.values())
        waiting = len(self._queue) + len(self._specials)
        wanted = self._wanted if self._wanted is not None else busy + waiting if waiting else 0
        request = wanted if wanted > capacity else 0
        if request != self._requested:
            self._requested = request
            self._engine.request(request)

    # --- time ---

    def _forgive_stall(self, now: float) -> None:
        """Do not count the time in which the driver did not poll."""
        stall_s = now - self._polled
        if stall_s < STALL_S:
            return
        self._waiting.shift(stall_s)
        for worker in self._workers.values():
            for held in worker.packs:
                held.member_since += stall_s
                held.silence.shift(stall_s)

    def _check_deadlines(self, now: float, events: list[Event]) -> None:
        """Kill workers whose pack has not ended a trial in time; collect packs without news."""
        silent: list[tuple[float, PackTask, str]] = []
        for worker in list(self._workers.values()):
            if not worker.packs:
                continue
            held = worker.packs[0]
            timeout_s = held.task.timeout_s
            if timeout_s is not None and now - held.member_since >= timeout_s + GRACE_S:
                worker.packs.popleft()
                rule = f"TimeoutError: no trial of this pack ended within {timeout_s:g} s (resources.trial_timeout)"
                error = with_output(rule, self._engine.last_output(worker.number))
                events.append(
                    PackFailed(pack_id=held.task.pack_id, cause=Cause.TIMED_OUT, error=error, node=worker.node)
                )
                self._replace(worker, worker.node, now)
            elif (silent_s := held.silence.overdue(now)) is not None:
                silent.append((silent_s, held.task, self._name(worker.node)))
        if silent:
            self._notices.append(Silence.text(silent))

    def _say_waiting(self, now: float, *, progress: bool) -> None:
        """State why nothing runs, if that has lasted for a while."""
        waits = bool(self._queue or self._specials)
        if progress or not waits or any(worker.packs for worker in self._workers.values()):
            self._waiting.progress(now)
            return
        if not self._waiting.due(now):
            return
        usable = self._usable(now)
        retry_s = min((self._health.may_start_in_s(node, now) for node in usable), default=0.0)
        failed = [self._name(node) for node in sorted(usable) if self._health.start_failures(node)]
        starting = [worker for worker in self._workers.values() if not worker.ready]
        stuck = [w for w in starting if w.node in self._nodes and self._nodes[w.node].free == 0]
        self._notices.append(
            self._waiting.reason(
                now,
                requested=self._requested,
                nodes=len(usable),
                starting=len(starting),
                stuck=len(stuck),
                failed=failed,
                retry_s=retry_s,
            )
        )

    def _say(self, text: str) -> None:
        if text not in self._notices:
            self._notices.append(text)

    def _name(self, node: str) -> str:
        known = self._nodes.get(node)
        return node[:12] if known is None else known.name


def is_sticky(error: str) -> bool:
    """Whether a process that raised this error cannot use its device any more."""
    return any(mark in error for mark in STICKY)
