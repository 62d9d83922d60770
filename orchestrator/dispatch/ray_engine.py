"""Workers as Ray actors: starting, feeding and killing them, and telling why one died.

An actor is placed on the node that the pool names, imports torch once and then trains pack after pack. Packs go to it
as plain data; what it measures comes back as a stream of events (`orchestrator.dispatch.worker.execute`).
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.dispatch import output, reaper
from orchestrator.dispatch.base import Cause, Event, PackFailed, PackProgress, PackTask
from orchestrator.dispatch.capacity import Need
from orchestrator.dispatch.engine import Engine, EngineEvent, NodeRoom, PackNews, WorkerDied, WorkerReady
from orchestrator.dispatch.placement import TAKE_BACK_S
from orchestrator.dispatch.ray_cluster import RayCluster
from orchestrator.dispatch.worker import execute, is_out_of_memory, prepare
from orchestrator.errors import Outage

DEATH_S = 3.0
"""On a cluster, a worker's death is told apart from its node's this long: the raylet may die a moment later."""
UNREACHABLE_S = 45.0
"""The same for a worker whose connection broke: the cluster notices a dead node after a while."""
OUTPUT_S = 5.0
"""The longest wait for the output of a worker on another node."""
EVENTS_AHEAD = 4
"""Events of a pack that wait for the driver; then its worker blocks, so that a slow record fills no memory. A short
pack has fewer, so its worker goes on to the next pack at once."""
SAVE = "save"
"""The end of a key of Ray's internal store that asks a worker to save its pack; its value is `life_s`."""
_FOREIGN = (
    "RuntimeError: the worker sent an event that this driver does not know: a trial has removed modules of phasefront "
    "from sys.modules, or loaded them again"
)
STREAM: Mapping[str, Any] = {"num_returns": "streaming", "_generator_backpressure_num_objects": EVENTS_AHEAD}
"""Options of a call that yields events."""


class WorkerActor:
    """One warm worker process (made an actor by `RayEngine`).

    Args:
        paths: folders to import the job from, after those of the process.
        threads: of tensor operations.
        device: where the packs train.
        withdrawn: prefix of the keys of Ray's internal store that withdraw a pack, or ask for a checkpoint.
    """

    def __init__(self, paths: Sequence[str], threads: int, device: str, withdrawn: str) -> None:
        for path in paths:
            if path not in sys.path:
                sys.path.append(path)
        self._threads, self._device, self._withdrawn = threads, device, withdrawn
        self._last_s = 0.0
        self._output = output.files()
        output.keep_bounded(self._output)
        reaper.guard_children()

    def warm(self, job: str | None) -> tuple[int, tuple[str, ...], str]:
        """Load what `job` needs; the process id, the files that hold the output, and the GPU."""
        with contextlib.suppress(Exception):  # a job that cannot be loaded is reported by its packs
            prepare(threads=self._threads, job=job)
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "") if self._device.startswith("cuda") else ""
        return os.getpid(), self._output, gpu

    def run(self, task: PackTask) -> Iterator[Event]:
        """Train one pack and stream what it measures; nothing if it was withdrawn while it waited here."""
        # A pack is withdrawn only after it has waited for a while, that is behind a pack that took as long.
        if self._last_s >= TAKE_BACK_S and _value(self._withdrawn + task.pack_id) is not None:
            return
        began = time.monotonic()
        try:
            yield from output.told(execute(task, device=self._device, asked=self._asked), self._output)
        finally:
            self._last_s = time.monotonic() - began

    def _asked(self) -> float | None:
        return _value(self._withdrawn + SAVE)


def _value(key: str) -> float | None:
    """The number at a key; None if it is not set."""
    from ray.experimental.internal_kv import _internal_kv_get

    try:
        text = _internal_kv_get(key.encode())
        return None if text is None else float(text)
    except Exception:  # of Ray, such as a head that does not answer: a question must not fail a training
        return None


@dataclass(eq=False)
class _Actor:
    number: int
    node: str
    handle: Any
    ready: Any
    """The reference of `warm`'s answer; None once it has come."""
    streams: deque[tuple[str, Any]] = field(default_factory=deque)
    """The ids of its packs, and their streams; the first one runs."""
    output: tuple[str, ...] = ()
    """The files on its node that hold what it prints."""
    death: BaseException | None = None
    """The error that it died with, while its cause is not known yet."""
    died_at: float = 0.0

    @property
    def waits_on(self) -> Any:
        """The reference that becomes ready with the worker's next event; None if it has no work."""
        return self.ready if self.ready is not None else self.streams[0][1] if self.streams else None


class RayEngine(Engine):
    """Ray actors as workers.

    Args:
        cluster: the connection, and what is known of its nodes.
        need: what one worker takes.
        device: "cpu" or "cuda".
        job: the job that workers load when they start; None for none yet.
    """

    def __init__(self, cluster: RayCluster, *, need: Need, device: str, job: str | None) -> None:
        self._cluster, self._need, self._device, self._job = cluster, need, device, job
        self._actors: dict[int, _Actor] = {}
        self._paths = [str(Path.cwd()), *(str(Path(p).resolve()) for p in sys.path if p and Path(p).is_dir())]
        self._closed = False

    @property
    def worker_needs(self) -> str:
        """As the request states it."""
        return self._need.text

    @property
    def process_ids(self) -> list[int]:
        """The workers' processes, on whichever node; waits until they are ready."""
        import ray

        answers = ray.get([actor.handle.warm.remote(self._job) for actor in self._actors.values()])
        return [int(pid) for pid, *_ in answers]

    @property
    def lacking(self) -> str:
        """By the total resources of the nodes that are alive."""
        return self._cluster.lacking(self._need)

    def nodes(self) -> Mapping[str, NodeRoom]:
        """The nodes that are alive, with their room by total resources."""
        return self._cluster.rooms(self._need)

    def start_worker(self, worker: int, node: str) -> None:
        """Make an actor that can only live on this node."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor_class: Any = ray.remote(
            num_cpus=self._need.cpus,
            num_gpus=self._need.gpus,
            memory=int(self._need.memory_bytes),
            resources=self._need.resources,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False),
        )(WorkerActor)
        threads = max(1, int(self._need.cpus))
        key = self._cluster.withdrawn_key(worker)
        handle = self._cluster.call(lambda: actor_class.remote(self._paths, threads, self._device, key))
        self._actors[worker] = _Actor(worker, node, handle, handle.warm.remote(self._job))

    def kill_worker(self, worker: int) -> None:
        """Kill the actor's process."""
        self._kill(self._actors.pop(worker))

    def _kill(self, actor: _Actor) -> None:
        import ray

        def kill() -> None:
            with contextlib.suppress(Exception):  # it may be dead already
                ray.kill(actor.handle, no_restart=True)

        self._cluster.call(kill)

    def start_pack(self, worker: int, task: PackTask) -> None:
        """Call `run`; Ray queues the call in the worker's process."""
        actor = self._actors[worker]
        actor.streams.append((task.pack_id, actor.handle.run.options(**STREAM).remote(task)))

    def withdraw(self, worker: int, pack_id: str) -> None:
        """Drop the stream, and tell the worker; `ray.cancel` has no effect on a call that waits for an actor."""
        streams = self._actors[worker].streams
        last, _ = streams.pop()
        assert last == pack_id
        self._cluster.keep_key(self._cluster.withdrawn_key(worker) + pack_id)

    def draining(self) -> Collection[str]:
        """As Ray said when it was last asked."""
        return self._cluster.draining

    def ask_to_save(self, worker: int, *, life_s: float = 0.0) -> None:
        """A worker looks for this key while it trains a long pack."""
        self._cluster.keep_key(self._cluster.withdrawn_key(worker) + SAVE, life_s)

    def request(self, workers: int) -> None:
        """Ask Ray's autoscaler."""
        self._cluster.request(workers, self._need)

    def wait(self, timeout_s: float) -> list[EngineEvent]:
        """At most one event of each worker."""
        import ray

        self._cluster.check(starting=any(actor.ready is not None for actor in self._actors.values()))
        happened: list[EngineEvent] = []
        now = time.monotonic()
        for actor in [actor for actor in self._actors.values() if actor.death is not None]:
            self._autopsy(actor, now, happened)
        news = {actor.waits_on: actor for actor in self._actors.values() if actor.death is None and actor.waits_on}
        if not news:
            if not happened:
                time.sleep(min(timeout_s, 0.05))
            return happened
        waits = list(news)
        ready, _ = ray.wait(waits, num_returns=1, timeout=0 if happened else timeout_s)
        if ready and len(waits) > 1:
            ready, _ = ray.wait(waits, num_returns=len(waits), timeout=0)
        for reference in ready:
            self._take(news[reference], happened)
        return happened

    def _take(self, actor: _Actor, happened: list[EngineEvent]) -> None:
        """Take the next event of one worker."""
        import ray

        event: Any
        try:
            if actor.ready is not None:
                _, actor.output, gpu = ray.get(actor.ready)
                actor.ready = None
                happened.append(WorkerReady(worker=actor.number, gpu=gpu))
                return
            pack_id, stream = actor.streams[0]
            event = ray.get(next(stream))
        except StopIteration:
            actor.streams.popleft()
            event = PackFailed(pack_id=pack_id, cause=Cause.WORKER_LOST, error="the stream broke off")
        except Exception as error:  # `explain` finds the cause of any error
            if actor.ready is not None or worker_died(error):
                actor.death, actor.died_at = error, time.monotonic()
                self._cluster.look_now()
                self._autopsy(actor, actor.died_at, happened)
                return
            cause, text = explain(error)
            actor.streams.popleft()
            event = PackFailed(pack_id=pack_id, cause=cause, error=text)
        else:
            if not isinstance(event, Event):  # not even the class is the driver's
                del self._actors[actor.number]
                self._kill(actor)
                happened.append(WorkerDied(worker=actor.number, cause=Cause.WORKER_LOST, error=_FOREIGN))
                return
            if not isinstance(event, PackProgress):
                actor.streams.popleft()
        happened.append(PackNews(worker=actor.number, event=event))

    def _autopsy(self, actor: _Actor, now: float, happened: list[EngineEvent]) -> None:
        """Report a worker's death once it is known whether its node died too."""
        import ray.exceptions as e

        error = actor.death
        assert error is not None
        cause, text = explain(error)
        if cause is not Cause.OUT_OF_MEMORY:
            gone = isinstance(error, (e.NodeDiedError, e.ActorUnschedulableError)) or getattr(error, "preempted", False)
            if gone or not self._cluster.is_alive(actor.node):
                cause = Cause.NODE_LOST
            else:
                patience_s = UNREACHABLE_S if isinstance(error, e.ActorUnavailableError) else DEATH_S
                if not self._cluster.local and now - actor.died_at < patience_s:
                    return
                cause = Cause.WORKER_LOST
        if cause is not Cause.NODE_LOST:
            text = output.with_output(text, self.last_output(actor.number))
        del self._actors[actor.number]
        self._kill(actor)
        happened.append(WorkerDied(worker=actor.number, cause=cause, error=text))

    def last_output(self, worker: int) -> str:
        """The end of its files; on a cluster a task on its node reads them."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = self._actors[worker]
        if not actor.output or self._cluster.local:
            return output.tail(actor.output)
        there = NodeAffinitySchedulingStrategy(node_id=actor.node, soft=False)
        read = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(output.tail)

        def last() -> str:
            try:
                return str(ray.get(read.remote(actor.output), timeout=OUTPUT_S))
            except Exception:  # the node may be dying; the failure is reported without the output
                return ""

        return self._cluster.call(last)

    def close(self) -> None:
        """Kill the actors; shut down the Ray that was started here, or disconnect from the cluster."""
        if self._closed:
            return
        self._closed = True
        if self._cluster.answers:
            with contextlib.suppress(Outage):  # without a head, the processes of a cluster end by themselves
                for actor in self._actors.values():
                    self._kill(actor)
        self._actors.clear()
        self._cluster.close()


def worker_died(error: BaseException) -> bool:
    """Whether an error of a call means that its actor will answer no more calls."""
    import ray.exceptions as e

    return isinstance(error, (e.RayActorError, e.WorkerCrashedError, e.NodeDiedError, e.OutOfMemoryError))


_MEMORY = re.compile(r"was ([\d.]+) ?GB(?: used)? / ([\d.]+) ?GB")


def explain(error: BaseException) -> tuple[Cause, str]:
    """The cause of an exception that a call on a worker ended with, and its text."""
    import ray.exceptions as e

    # Ray appends general advice to every death of a process.
    text = str(error).partition(" Some common causes include")[0]
    if isinstance(error, e.OutOfMemoryError) or (isinstance(error, e.RayActorError) and "OutOfMemory" in text):
        used = _MEMORY.search(text)
        what = f"{used[1]} GB of the node's {used[2]} GB were in use" if used else "the node ran out of memory"
        return Cause.OUT_OF_MEMORY, f"{text.rstrip()}\n{what} when Ray ended the worker"
    lost = (
        e.RayActorError,
        e.WorkerCrashedError,
        e.NodeDiedError,
        e.OwnerDiedError,
        e.ObjectLostError,
        e.LocalRayletDiedError,
    )
    if isinstance(error, lost) and not isinstance(error, e.RayTaskError):
        return Cause.WORKER_LOST, text
    cause = getattr(error, "cause", None) if isinstance(error, e.RayTaskError) else None
    user_error = cause if isinstance(cause, BaseException) else error
    return (Cause.OUT_OF_MEMORY if is_out_of_memory(user_error) else Cause.USER_ERROR), text
