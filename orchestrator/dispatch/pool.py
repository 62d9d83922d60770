"""A pool of warm workers on any engine: which worker starts where, which pack runs on it, and what happens if it dies.

All decisions are here; they depend on events and on the clock that is passed in, so that they are the same on Ray and
in a simulation.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from orchestrator.checkpoints.interval import NodeLives
from orchestrator.checkpoints.saving import ASK_AFTER_S
from orchestrator.dispatch.base import Cause, Dispatcher, Event, PackEnded, PackFailed, PackProgress, PackTask
from orchestrator.dispatch.engine import Engine, EngineEvent, PackNews, WorkerDied, WorkerReady
from orchestrator.dispatch.health import DEVICE_ERRORS_BEFORE_EXCLUSION, STILLBORN_LIMIT, NodeHealth
from orchestrator.dispatch.output import with_output
from orchestrator.dispatch.placement import AHEAD_UNEVEN, Placement
from orchestrator.dispatch.roster import STUCK_S, Held, Roster, Worker
from orchestrator.dispatch.source import Source
from orchestrator.dispatch.versions import JobVersions
from orchestrator.dispatch.waiting import Silence, Waiting, workers_are
from orchestrator.printable import last_line
from orchestrator.records import Status

LOOK_S = 5.0
"""How often the nodes are looked at."""
NEWS_OF_LIFE = 1.5
"""Workers are told of another mean life of nodes where it differs from the one that they know by this factor."""
RELEASE_S = 60.0
"""A worker of a cluster that has been idle for this long, while no pack waits, is released, so that nodes can leave."""
CHECK_S = 1.0
"""How often deadlines and silences are checked."""
GRACE_S = 5.0
"""Beyond `PackTask.timeout_s`: results are on their way for a while (`worker.FLUSH_S`)."""
STALL_S = 5.0
"""A longer time between two polls is the driver's own: it counts as nobody's silence."""
FAILURES_BEFORE_REPLACEMENT = 5
"""Failures in a row of one worker, while others succeed, before it is replaced."""
SLOW_START_S = 60.0
"""A worker that has been starting for this long is mentioned."""
STICKY = ("CUDA error", "device-side assert", "unspecified launch failure", "CUDNN_STATUS", "CUBLAS_STATUS")
"""Errors after which a process cannot use its device any more."""


class PooledDispatcher(Dispatcher):
    """A pool of workers.

    Args:
        engine: starts and stops workers.
        workers: how many; None for as many as the nodes hold, following nodes that come and go.
        grows: whether nodes may join that are not there yet, so that it is worth waiting for them.
        source: the driver's source of the job, which workers must have; None to accept any.
        max_share: the share of the nodes' room that may be used.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        workers: int | None,
        grows: bool = True,
        source: Source | None = None,
        max_share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._clock = engine, clock
        self._health = NodeHealth()
        self._versions = JobVersions(source, local=not grows)
        self._roster = Roster(
            engine,
            wanted=workers,
            grows=grows,
            health=self._health,
            versions=self._versions,
            max_share=max_share,
        )
        self._placement = Placement(engine, self._roster, self._health)
        self._lives = NodeLives()
        self._asked: set[str] = set()
        """Packs that were asked for a checkpoint because the run is stopped."""
        self._draining: set[str] = set()
        """Nodes that are going away, whose workers were asked for checkpoints."""
        self._lost: set[str] = set()
        """Nodes that died, each of which is mentioned once."""
        self._replaced: set[tuple[str, str]] = set()
        """Nodes and reasons for which a worker was replaced that were mentioned."""
        self._slow: set[str] = set()
        """Nodes with slow starts that were mentioned."""
        self._notices: list[str] = []
        self._waiting = Waiting(engine.worker_needs)
        self._last_success: tuple[float, int] = (float("-inf"), 0)
        """When a trial last finished, and the number of its worker."""
        self._looked = self._checked = float("-inf")
        self._polled = clock()
        self._closed = self._submitted = False
        self._look(self._polled, [])

    # --- the contract of a dispatcher ---

    @property
    def workers(self) -> int:
        """Workers that run and get packs, or have been starting for a short time."""
        now = self._clock()
        serving = (w for w in self._roster.workers.values() if not w.shelved_on)
        return max(1, sum(w.ready or now - w.started_at < STUCK_S for w in serving))

    @property
    def planned_workers(self) -> int:
        """Those that were asked for, too, where the cluster may grow."""
        return max(self.workers, self._roster.planned)

    @property
    def packs_ahead(self) -> int:
        """More where some workers are slow."""
        return AHEAD_UNEVEN if self._placement.uneven else super().packs_ahead

    @property
    def note(self) -> str:
        """How many workers are ready, where some are not."""
        ready, there = self._roster.ready(), len(self._roster.workers)
        return f"{ready} of {there} workers ready" if ready < there else ""

    def running(self) -> Collection[str]:
        """The first pack of each worker."""
        return [worker.packs[0].task.pack_id for worker in self._roster.workers.values() if worker.packs]

    def notices(self) -> list[str]:
        """Nodes and workers that were replaced or excluded, packs without news, and reasons for waiting."""
        said, self._notices = self._notices, []
        return said

    def submit(self, tasks: Sequence[PackTask]) -> None:
        """Queue packs, and give them to idle workers."""
        now = self._clock()
        self._submitted = True
        for task in tasks:
            if task.saving is not None and (life_s := self._lives.mean_s) is not None:
                task = replace(task, saving=replace(task.saving, life_s=life_s))
            self._placement.add(self._versions.stamped(task), now)
        if self._roster.resting:
            self._roster.resting = False
            self._looked = float("-inf")
        self._placement.assign(now)

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
        self._placement.take_back(now)
        self._placement.assign(now)
        happened = self._engine.wait(timeout_s)
        now = self._clock()
        for event in happened:
            self._apply(event, events, now)
        if now - self._checked >= CHECK_S:
            self._checked = now
            self._check_deadlines(now, events)
            self._say_slow_starts(now)
            self._say_waiting(now, progress=bool(happened))
        self._placement.assign(now)
        self._polled = now
        return events

    def prepare_to_close(self) -> None:
        """Saved is the first pack of each worker, where it is old enough to be worth it."""
        self._roster.withdraw()
        now = self._clock()
        for worker in self._roster.workers.values():
            held = worker.packs[0] if worker.packs else None
            if held is not None and held.task.saving is not None and now - held.began >= ASK_AFTER_S:
                self._engine.ask_to_save(worker.number)
                self._asked.add(held.task.pack_id)

    def await_saved(self, timeout_s: float) -> None:
        """Wait for the packs of `prepare_to_close`; one that was saved just before does not answer."""
        end = self._clock() + timeout_s
        while self._asked and (left_s := end - self._clock()) > 0:
            for happened in self._engine.wait(min(left_s, 0.1)):
                if isinstance(happened, PackNews):
                    event = happened.event
                    if not isinstance(event, PackProgress) or event.saved is not None:
                        self._asked.discard(event.pack_id)

    def await_ready(self, *, timeout_s: float, all_of_them: bool, stopping: Callable[[], bool] = lambda: False) -> None:
        """Wait until the first worker, or every worker, has started; at most `timeout_s`, and not while `stopping`.

        Raises:
            See `poll`.
        """
        end = self._clock() + timeout_s
        while (left_s := end - self._clock()) > 0 and not stopping():
            self.poll(min(left_s, 0.2))
            ready = self._roster.ready()
            if ready and (ready == len(self._roster.workers) or not all_of_them):
                return

    def close(self) -> None:
        """Kill the workers and release the engine."""
        if self._closed:
            return
        self._closed = True
        self._placement.clear()
        self._roster.clear()
        try:
            self._roster.withdraw()
        finally:
            self._engine.close()

    # --- events ---

    def _apply(self, happened: EngineEvent, events: list[Event], now: float) -> None:
        worker = self._roster.workers.get(happened.worker)
        if worker is None:
            return  # it was killed meanwhile
        if isinstance(happened, WorkerReady):
            self._roster.has_started(worker)
            worker.gpu = happened.gpu
            # Others that start may get the good GPUs; which one each gets is known when it is ready.
            others = any(not (w.ready and w.shelved_on) for w in self._roster.workers.values() if w is not worker)
            paused = others and self._health.gpu_paused(worker.node, worker.gpu, now)
            worker.shelved_on = worker.gpu if paused else ""  # whatever GPU it was started for
            self._placement.has_started(worker)
            self._health.started(worker.node)
            if worker.node in self._slow and all(other.ready for other in self._roster.on(worker.node)):
                self._slow.discard(worker.node)
        elif isinstance(happened, WorkerDied):
            self._bury(worker, happened, events, now)
        else:
            self._take_news(worker, happened, events, now)

    def _take_news(self, worker: Worker, happened: PackNews, events: list[Event], now: float) -> None:
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
        if isinstance(event, PackEnded) and not (held.task.saving and held.task.saving.resumes):
            self._placement.paces.ended(worker.node, expected_s=held.task.expected_s, took_s=event.train_s)
        worker.packs.popleft()
        self._roster.alone.pop(worker.number, None)
        if worker.packs:
            worker.packs[0].begin(now)
        if isinstance(event, PackFailed):
            event = replace(event, node=worker.node)
            self._note_device(worker, event.error)
            if event.cause is Cause.USER_ERROR:
                self._note_failure(worker, now)
        events.append(event)
        if isinstance(event, PackFailed) and event.cause is Cause.TIMED_OUT:
            self._say_replaced(worker, "its trial has exceeded resources.trial_timeout")
            self._replace(worker, now)  # it may still be in the trial
        else:
            self._consider(worker, now)

    def _refused(self, worker: Worker, event: PackFailed, now: float) -> None:
        """End a worker with another version of the job; its packs wait for another worker."""
        task = worker.packs.popleft().task
        if text := self._versions.refused(worker.node, self._roster.name(worker.node), event):
            self._say(text)
        self._dismiss(worker)
        self._placement.add(task, now, first=True)
        self._looked = float("-inf")

    def _note_results(self, worker: Worker, held: Held, event: PackProgress, now: float) -> PackProgress:
        failed = False
        for result in event.results:
            if result.status is Status.FINISHED:
                worker.failures = 0
                self._health.succeeded(worker.node, began=held.began)
                self._health.gpu_works(worker.node, worker.gpu)
                self._last_success = (now, worker.number)
                for node in held.task.avoid_nodes - {worker.node}:
                    if self._health.refuted(node, now):
                        self._exclude(node)
            elif result.status is Status.FAILED:
                failed = True
                self._note_failure(worker, now)
                self._note_device(worker, result.error or "")
        return replace(event, node=worker.node) if failed else event

    def _note_failure(self, worker: Worker, now: float) -> None:
        if not worker.failures:
            worker.failing_since = now
        worker.failures += 1
        self._health.failed(worker.node, workers=self._roster.count(worker.node), now=now)

    def _consider(self, worker: Worker, now: float) -> None:
        """Replace a worker whose pack has ended, if it should not get another one."""
        others_succeed = self._last_success[0] >= worker.failing_since and self._last_success[1] != worker.number
        if worker.sticky and self._health.is_bad_gpu(worker.node, worker.gpu) and self._shelve(worker, now):
            return
        if worker.sticky or (worker.failures >= FAILURES_BEFORE_REPLACEMENT and others_succeed):
            reason = "its device reports an error" if worker.sticky else f"{worker.failures} failures in a row"
            self._say(f"a worker on {self._roster.name(worker.node)} is replaced: {reason}")
            self._replace(worker, now)
        elif self._roster.surplus:
            self._roster.surplus -= 1
            self._dismiss(worker)
        elif worker.node in self._roster.draining or (
            self._health.excluded(worker.node, now) and worker.node not in self._roster.usable(now)
        ):
            self._dismiss(worker)

    def _note_device(self, worker: Worker, error: str) -> None:
        if is_sticky(error) and not worker.sticky:
            worker.sticky = True
            self._health.gpu_failed(worker.node, worker.gpu)

    def _has_others(self, worker: Worker) -> bool:
        """Whether another worker is ready for packs."""
        return any(w.ready and not w.shelved_on and w is not worker for w in self._roster.workers.values())

    def _shelve(self, worker: Worker, now: float) -> bool:
        """Replace a worker by one that gets no packs, so that its GPU goes to no other; not the last worker."""
        if not self._has_others(worker):
            return False
        self._health.pause_gpu(worker.node, worker.gpu, now)
        fresh = self._roster.replace(worker, worker.node, now)
        fresh.shelved_on = worker.gpu
        self._placement.requeue(worker)
        self._say(
            f"GPU {worker.gpu} of {self._roster.name(worker.node)} gets no packs for 30 minutes: the last "
            f"{DEVICE_ERRORS_BEFORE_EXCLUSION} workers on it met an error of the device"
        )
        return True

    def _bury(self, worker: Worker, death: WorkerDied, events: list[Event], now: float) -> None:
        """Replace a dead worker: the pack that ran is lost, the one that waited goes back to the queue."""
        self._roster.forget(worker)
        if death.cause is Cause.NODE_LOST and worker.node not in self._lost:
            self._lost.add(worker.node)
            if worker.packs or any(other.packs for other in self._roster.on(worker.node)):
                self._lives.lost()
                self._tell_life()
                self._say(f"node {self._roster.name(worker.node)} was lost; its trials are run again")
            else:  # an autoscaler may have removed it
                self._say(f"node {self._roster.name(worker.node)} has left; no trial ran there")
        if death.cause is not Cause.NODE_LOST and not worker.used:
            before = self._health.start_failures(worker.node)
            self._health.start_failed(worker.node, started_at=worker.started_at, now=now, error=death.error)
            self._say_start_failed(worker.node, before, last_line(death.error))
        elif death.cause is not Cause.NODE_LOST:
            self._say_replaced(worker, "its process has died")
        if worker.packs:
            task = worker.packs.popleft().task
            events.append(PackFailed(pack_id=task.pack_id, cause=death.cause, error=death.error, node=worker.node))
        self._placement.requeue(worker)
        self._looked = float("-inf")

    def _tell_life(self) -> None:
        """A pack that has begun while no node was lost is saved seldom."""
        life_s = self._lives.mean_s
        assert life_s is not None
        for worker in self._roster.workers.values():
            saving = worker.packs[0].task.saving if worker.packs else None
            if saving is None or worker.node in self._draining:
                continue
            known_s = worker.life_s or saving.life_s
            if known_s is None or not 1 / NEWS_OF_LIFE < life_s / known_s < NEWS_OF_LIFE:
                worker.life_s = life_s
                self._engine.ask_to_save(worker.number, life_s=life_s)

    def _say_start_failed(self, node: str, before: int, error: str) -> None:
        """Mention the first failed start of a node, and the one from which on it is unlikely to hold a worker."""
        failures, name = self._health.start_failures(node), self._roster.name(node)
        if failures == before:
            return
        if failures == 1:
            self._say(
                f"a worker on {name} died while starting ({error}); it is tried again after a pause; next, if it "
                f"happens again: {self._roster.remedy(node)}"
            )
        elif failures == STILLBORN_LIMIT and self._roster.grows:
            meanwhile = "trials run on other nodes" if self._roster.ready() else "another node may join meanwhile"
            self._say(
                f"workers on {name} died while starting, {failures} times in a row; it is tried again at growing "
                f"intervals, and {meanwhile}; next: {self._roster.remedy(node)}"
            )

    def _say_replaced(self, worker: Worker, reason: str) -> None:
        """Mention the first worker of a node that is replaced for this reason."""
        if (worker.node, reason) not in self._replaced:
            self._replaced.add((worker.node, reason))
            self._say(f"a worker on {self._roster.name(worker.node)} is replaced: {reason}")

    def _dismiss(self, worker: Worker) -> None:
        self._roster.dismiss(worker)
        self._placement.requeue(worker)

    def _replace(self, worker: Worker, now: float) -> None:
        self._roster.replace(worker, worker.node, now)
        self._placement.requeue(worker)

    def _look(self, now: float, events: list[Event]) -> None:
        """See which nodes are there, and start as many workers as they hold."""
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        self._lives.passed(now, len(self._roster.nodes))
        self._roster.look()
        self._drain(now)
        for worker in self._roster.gone(now):  # the engine may not say so
            self._engine.kill_worker(worker.number)
            death = WorkerDied(worker=worker.number, cause=Cause.NODE_LOST, error="the node left the cluster")
            self._bury(worker, death, events, now)
        self._looked = now
        self._release(now)
        capacity = self._roster.fill(now)
        for worker in list(self._roster.workers.values()):
            if self._roster.surplus and not (worker.packs or worker.reserved_for or worker.shelved_on):
                self._roster.surplus -= 1
                self._dismiss(worker)
        self._roster.request(self._wanted(), capacity)

    def _wanted(self) -> int:
        """The workers that the packs could use, if some packs wait; also those that wait behind another one."""
        held = sum(len(worker.packs) for worker in self._roster.workers.values())
        running = len(self.running())
        if self._placement.waiting or held > running:
            return self._placement.waiting + held
        return 0 if self._submitted or self._roster.workers else 1

    def _drain(self, now: float) -> None:
        """Save what trains on nodes that are going away, and let nothing new begin there."""
        self._roster.draining = set(self._engine.draining())
        for node in self._roster.draining - self._draining:
            self._draining.add(node)
            for worker in self._roster.on(node):
                self._placement.take_back_from(worker)
                if worker.packs:
                    self._engine.ask_to_save(worker.number)
                else:
                    self._dismiss(worker)

    def _release(self, now: float) -> None:
        """End workers that have been idle for a while, but for the last one: a search may propose more at any time."""
        if self._placement.waiting:
            self._roster.resting = False
        if not self._roster.grows:
            return
        for worker in list(self._roster.workers.values()):
            busy = worker.packs or worker.reserved_for or worker.shelved_on or not worker.ready
            if busy or self._placement.waiting:
                worker.idle_since = None
            elif worker.idle_since is None:
                worker.idle_since = now
            elif now - worker.idle_since >= RELEASE_S and self._has_others(worker):
                self._roster.resting = True
                self._dismiss(worker)

    def _exclude(self, node: str) -> None:
        name = self._roster.name(node)
        self._say(f"node {name} is excluded for 30 minutes: trials that failed there succeed on other nodes")
        for worker in self._roster.on(node):
            if not worker.packs:
                self._dismiss(worker)
        self._looked = float("-inf")

    # --- time ---

    def _forgive_stall(self, now: float) -> None:
        """Do not count the time in which the driver did not poll."""
        stall_s = now - self._polled
        if stall_s < STALL_S:
            return
        self._waiting.shift(stall_s)
        for worker in self._roster.workers.values():
            for held in worker.packs:
                held.shift(stall_s)

    def _check_deadlines(self, now: float, events: list[Event]) -> None:
        """Kill workers whose pack has not ended a trial in time; collect packs without news."""
        silent: list[tuple[float, PackTask, str]] = []
        for worker in list(self._roster.workers.values()):
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
                self._say_replaced(worker, "its trial has exceeded resources.trial_timeout")
                self._replace(worker, now)
            elif (silent_s := held.silence.overdue(now)) is not None:
                silent.append((silent_s, held.task, self._roster.name(worker.node)))
        if silent:
            self._notices.append(Silence.text(silent))

    def _say_slow_starts(self, now: float) -> None:
        """Mention the nodes on which workers take long to start, each once."""
        slow = Counter(
            worker.node
            for worker in self._roster.workers.values()
            if not worker.ready and now - worker.started_at >= SLOW_START_S and worker.node not in self._slow
        )
        if not slow:
            return
        self._slow.update(slow)
        names = [self._roster.name(node) for node in sorted(slow)]
        where = ", ".join(names[:3]) + (f" and {len(names) - 3} more nodes" if len(names) > 3 else "")
        self._say(
            f"{workers_are(slow.total())} still starting on {where} after {SLOW_START_S:.0f} s: resources there are "
            "in use, the machine is slow, or processes of Ray die there. Ray's logs there tell (by default in "
            "/tmp/ray/session_latest/logs)"
        )

    def _say_waiting(self, now: float, *, progress: bool) -> None:
        """State why nothing runs, if that has lasted for a while."""
        nothing_to_do = self._roster.ready() and not self._placement.waiting
        if progress or nothing_to_do or any(worker.packs for worker in self._roster.workers.values()):
            self._waiting.progress(now)
            return
        if not self._waiting.due(now):
            return
        usable = self._roster.usable(now)
        retry_s = min((self._health.may_start_in_s(node, now) for node in usable), default=0.0)
        failed = [self._roster.name(node) for node in sorted(usable) if self._health.start_failures(node)]
        self._notices.append(
            self._waiting.reason(
                now,
                requested=self._roster.requested,
                nodes=len(usable),
                lacking=self._engine.lacking,
                starting=len(self._roster.workers) - self._roster.ready(),
                stuck=self._roster.stuck(),
                failed=failed,
                retry_s=retry_s,
            )
        )

    def _say(self, text: str) -> None:
        if text not in self._notices:
            self._notices.append(text)


def is_sticky(error: str) -> bool:
    """Whether a process that raised this error cannot use its device any more."""
    return any(mark in error for mark in STICKY)
