"""An engine whose workers do what a test says, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.checkpoints.saving import Saved
from orchestrator.dispatch.base import Cause, Event, PackEnded, PackFailed, PackProgress, PackTask
from orchestrator.dispatch.engine import Engine, EngineEvent, NodeRoom, PackNews, WorkerDied, WorkerReady
from orchestrator.dispatch.pool import PooledDispatcher
from orchestrator.records import Status, TrialResult


class ScriptedEngine(Engine):
    """Keeps what it is told; a test moves it on."""

    worker_needs = "4 CPUs"

    def __init__(self, **rooms: int) -> None:
        self.now = 1000.0
        self.rooms = {name: NodeRoom(name=f"host {name}", room=room) for name, room in rooms.items()}
        self.where: dict[int, str] = {}
        """The node of each living worker."""
        self.packs: dict[int, list[str]] = {}
        """The packs of each living worker."""
        self.started: list[str] = []
        """The nodes on which workers were started, in order."""
        self.requested: list[int] = []
        self.drained: set[str] = set()
        """The nodes that are going away."""
        self.asked: list[int] = []
        """The workers that were asked to save their packs."""
        self.told: dict[int, float] = {}
        """The mean life of nodes that workers were told."""
        self.tasks: dict[str, PackTask] = {}
        """Every pack, as it was started last."""
        self.closed = False
        self._events: list[EngineEvent] = []

    def __call__(self) -> float:
        return self.now

    def nodes(self) -> Mapping[str, NodeRoom]:
        return dict(self.rooms)

    def start_worker(self, worker: int, node: str) -> None:
        self.where[worker], self.packs[worker] = node, []
        self.started.append(node)

    def kill_worker(self, worker: int) -> None:
        del self.where[worker], self.packs[worker]
        self._events = [event for event in self._events if event.worker != worker]

    def start_pack(self, worker: int, task: PackTask) -> None:
        self.packs[worker].append(task.pack_id)
        self.tasks[task.pack_id] = task

    def draining(self) -> set[str]:
        return self.drained

    def ask_to_save(self, worker: int, *, life_s: float = 0.0) -> None:
        if life_s:
            self.told[worker] = life_s
        else:
            self.asked.append(worker)

    def withdraw(self, worker: int, pack_id: str) -> None:
        assert self.packs[worker][-1] == pack_id
        assert len(self.packs[worker]) > 1
        self.packs[worker].pop()

    def wait(self, timeout_s: float) -> list[EngineEvent]:
        happened, self._events = self._events, []
        if not happened:
            self.now += timeout_s
        return happened

    def request(self, workers: int) -> None:
        self.requested.append(workers)

    def close(self) -> None:
        self.closed = True

    # --- what happens ---

    def set_free(self, **free: int) -> None:
        for name, count in free.items():
            self.rooms[name] = replace(self.rooms[name], free=count)

    def ready(self, *workers: int, gpu: str = "") -> None:
        """These workers have started, on this GPU; all of them if none is named."""
        self._events += [WorkerReady(worker=worker, gpu=gpu) for worker in workers or self.where]

    def die(self, worker: int, cause: Cause = Cause.WORKER_LOST, error: str = "it died") -> None:
        del self.where[worker], self.packs[worker]
        self._events.append(WorkerDied(worker=worker, cause=cause, error=error))

    def holder(self, pack_id: str) -> int:
        """The worker that has the pack."""
        (worker,) = [worker for worker, packs in self.packs.items() if pack_id in packs]
        return worker

    def _news(self, event: Event) -> None:
        worker = self.holder(event.pack_id)
        assert self.packs[worker][0] == event.pack_id, "it has not begun"
        self._events.append(PackNews(worker=worker, event=event))

    def result(self, pack_id: str, trial_id: str, error: str | None = None) -> None:
        """A trial of the pack ends."""
        status = Status.FINISHED if error is None else Status.FAILED
        result = TrialResult(trial_id=trial_id, status=status, error=error)
        self._news(PackProgress(pack_id=pack_id, rows=None, results=(result,)))

    def save(self, pack_id: str) -> None:
        """The pack writes a checkpoint."""
        saved = Saved(file="file", steps={pack_id: 1})
        self._news(PackProgress(pack_id=pack_id, rows=None, results=(), saved=saved))

    def end(self, pack_id: str, error: str | None = None, *, train_s: float = 1.0) -> None:
        """The pack of one trial, which has the pack's name, ends."""
        self.result(pack_id, pack_id, error)
        self._news(PackEnded(pack_id=pack_id, train_s=train_s))
        self.packs[self.holder(pack_id)].remove(pack_id)

    def fail(self, pack_id: str, error: str, cause: Cause = Cause.USER_ERROR) -> None:
        """The pack fails as a whole."""
        self._news(PackFailed(pack_id=pack_id, cause=cause, error=error))
        self.packs[self.holder(pack_id)].remove(pack_id)


def scripted_task(pack_id: str, **wishes: object) -> PackTask:
    """A pack of one trial, both of this name."""
    task = PackTask(pack_id=pack_id, job="job", trial_ids=(pack_id,), params=({},), seeds=(0,), thresholds={})
    return replace(task, **wishes)  # type: ignore[arg-type]


class Bench:
    """A pool on a scripted engine."""

    def __init__(self, *, workers: int | None = None, grows: bool = True, max_share: float = 1.0, **rooms: int) -> None:
        self.engine = ScriptedEngine(**rooms)
        self.pool = PooledDispatcher(self.engine, workers=workers, grows=grows, max_share=max_share, clock=self.engine)
        self.said: list[str] = []

    def submit(self, *tasks: PackTask | str) -> None:
        self.pool.submit([scripted_task(task) if isinstance(task, str) else task for task in tasks])

    def poll(self, seconds: float = 0.0) -> list[Event]:
        """Poll once, and then until so much time has passed."""
        end = self.engine.now + seconds
        events = self.pool.poll(0.0)
        while self.engine.now < end:
            events += self.pool.poll(min(0.2, end - self.engine.now))
        self.said += self.pool.notices()
        return events

    def ready(self) -> None:
        """Start the workers that are starting."""
        self.engine.ready()
        self.poll()

    def failures(self, events: list[Event]) -> list[tuple[str, Cause, str]]:
        return [(event.pack_id, event.cause, event.node) for event in events if isinstance(event, PackFailed)]
