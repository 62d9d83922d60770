"""Runs packs on warm Ray actors, one per CPU core or GPU, on this machine or a cluster.

Ray is imported in this folder alone, and only when a pool is made. An actor lives as long as the pool: it
imports torch once and then trains pack after pack. Packs go to it as plain data; what it measures
comes back as a stream of events (`orchestrator.dispatch.worker.execute`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.dispatch.base import Cause, Dispatcher, Event, PackFailed, PackProgress, PackTask
from orchestrator.dispatch.capacity import Request
from orchestrator.dispatch.ray_connection import cluster_nodes, connect, disconnect
from orchestrator.dispatch.worker import execute, is_out_of_memory, prepare
from orchestrator.errors import UserError

AHEAD = 2
"""Packs that a worker holds: the running one and the next, so that it does not wait for the driver."""
LOOK_S = 5.0
"""How often the cluster is checked for new nodes."""
STILLBORN_LIMIT = 3
"""Give up after this many workers in a row died before they were ready."""
WARM_S = 60.0
"""How long to wait for a new pool before packs go to the workers that are ready."""


class WorkerActor:
    """One warm worker process (made an actor by `RayDispatcher`)."""

    def __init__(self, paths: Sequence[str], threads: int, device: str) -> None:
        for path in paths:
            if path not in sys.path:
                sys.path.append(path)
        self._threads, self._device = threads, device

    def warm(self, job: str | None) -> int:
        """Load what `job` needs; the process id."""
        with contextlib.suppress(Exception):  # a job that cannot be loaded is reported by its packs
            prepare(threads=self._threads, job=job)
        return os.getpid()

    def run(self, task: PackTask) -> Iterator[Event]:
        """Train one pack and stream what it measures."""
        yield from execute(task, device=self._device)


@dataclass(eq=False)
class _Worker:
    actor: Any
    ready: Any
    """The reference of `warm`'s answer; None once it has come."""
    packs: deque[tuple[PackTask, Any]] = field(default_factory=deque)
    """The packs it holds with their streams; the first one runs."""

    @property
    def waits_on(self) -> Any:
        """The reference that becomes ready with the worker's next event; None if it has no work."""
        return self.ready if self.ready is not None else self.packs[0][1] if self.packs else None


class RayDispatcher(Dispatcher):
    """A pool of warm actors.

    Args:
        job: the job that workers load when they start; None for none yet.
        request: how many workers, and what each takes; None for the defaults. Without a number of workers, as many as
            the cluster holds, following nodes that come and go. A worker has as many threads as it takes CPU cores.

    Raises:
        UserError: no cluster, no access, or no device of the kind asked for.
    """

    def __init__(
        self,
        *,
        job: str | None = None,
        request: Request | None = None,
    ) -> None:
        self._job, self._request = job, request or Request()
        self._owns_ray = connect(self._request.local_node())
        self._closed = False
        self._queue: deque[PackTask] = deque()
        self._pool: list[_Worker] = []
        self._stillborn = 0
        self._looked = time.monotonic()
        try:
            shape = self._request.shape(cluster_nodes())
            self._device, self._need = shape.device, shape.need
            if shape.workers < 1:
                raise self._request.no_room(shape)
            for _ in range(shape.workers):
                self._hire()
            self._await_workers()
        except BaseException:
            self.close()
            raise

    def _hire(self) -> None:
        import ray

        need = self._need
        takes = {"num_cpus": need.cpus, "num_gpus": need.gpus, "memory": int(need.memory_bytes)}
        actor_class = ray.remote(**takes, max_restarts=0, max_task_retries=0)(WorkerActor)
        paths = [str(Path.cwd()), *(str(Path(p).resolve()) for p in sys.path if p and Path(p).is_dir())]
        actor = actor_class.remote(paths, max(1, int(need.cpus)), self._device)
        self._pool.append(_Worker(actor, actor.warm.remote(self._job)))

    def _await_workers(self) -> None:
        """Wait until workers are warm, so that starting is not counted as training.

        On a cluster only for the first: nodes may be busy or still joining.
        """
        import ray

        local = os.environ.get("RAY_ADDRESS", "local") in ("", "local")
        starting = [worker.ready for worker in self._pool]
        ray.wait(starting, num_returns=len(starting) if local else 1, timeout=WARM_S)

    @property
    def workers(self) -> int:
        """Actors that run or start now."""
        return max(1, len(self._pool))

    @property
    def process_ids(self) -> list[int]:
        """The workers' processes, on whichever node; waits until they are ready."""
        import ray

        return [int(pid) for pid in ray.get([w.actor.warm.remote(self._job) for w in self._pool])]

    def submit(self, tasks: Sequence[PackTask]) -> None:
        """Queue packs; each worker holds one that runs and the next."""
        self._queue.extend(tasks)
        self._feed()

    def _feed(self) -> None:
        """Hand out queued packs, first one to each worker, then a second."""
        for level in range(AHEAD):
            for worker in self._pool:
                if not self._queue:
                    return
                if worker.ready is None and len(worker.packs) == level:
                    task = self._queue.popleft()
                    worker.packs.append((task, worker.actor.run.options(num_returns="streaming").remote(task)))

    def poll(self, timeout_s: float) -> list[Event]:
        """At most one event of each worker; dead workers are replaced on the way.

        Raises:
            UserError: workers cannot start at all.
        """
        import ray

        self._look()
        news = {worker.waits_on: worker for worker in self._pool if worker.waits_on is not None}
        if not news:
            time.sleep(min(timeout_s, 0.05) if self._queue else 0.0)
            return []
        waits = list(news)
        ready, _ = ray.wait(waits, num_returns=1, timeout=timeout_s)
        if ready and len(waits) > 1:
            ready, _ = ray.wait(waits, num_returns=len(waits), timeout=0)
        events: list[Event] = []
        for item in ready:
            self._take(news[item], events)
        self._feed()
        return events

    def _take(self, worker: _Worker, events: list[Event]) -> None:
        """Take the next event of one worker."""
        import ray

        if worker.ready is not None:
            try:
                ray.get(worker.ready)
            except Exception as error:  # whatever it is, this worker did not start
                self._bury(worker, str(error), events)
            else:
                worker.ready, self._stillborn = None, 0
            return
        task, stream = worker.packs[0]
        try:
            event: Event = ray.get(next(stream))
        except StopIteration:
            worker.packs.popleft()
            events.append(PackFailed(pack_id=task.pack_id, cause=Cause.WORKER_LOST, error="the stream broke off"))
        except Exception as error:  # `explain` finds the cause of any error
            cause, text = explain(error)
            if cause is Cause.WORKER_LOST or worker_died(error):
                self._bury(worker, text, events, cause)
            else:
                worker.packs.popleft()
                events.append(PackFailed(pack_id=task.pack_id, cause=cause, error=text))
        else:
            events.append(event)
            if not isinstance(event, PackProgress):
                worker.packs.popleft()
            if isinstance(event, PackFailed) and event.cause is Cause.TIMED_OUT:
                self._retire(worker)

    def _retire(self, worker: _Worker) -> None:
        """Kill a worker and hire another; its packs, none of which runs, go back to the queue."""
        self._pool.remove(worker)
        self._kill(worker)
        self._queue.extendleft(task for task, _ in reversed(worker.packs))
        self._looked = 0.0
        self._look()

    def _bury(self, worker: _Worker, error: str, events: list[Event], cause: Cause = Cause.WORKER_LOST) -> None:
        """Replace a dead worker: the pack that ran is lost, the one that waited goes back to the queue."""
        self._pool.remove(worker)
        self._kill(worker)
        if worker.ready is not None:
            self._stillborn += 1
            if self._stillborn >= STILLBORN_LIMIT:
                raise UserError(
                    f"{STILLBORN_LIMIT} workers in a row died while starting",
                    place="resources",
                    next_step=(
                        "on a cluster, every node needs phasefront in the Python environment of Ray, or the project in "
                        f"the job's working directory (`ray job submit --working-dir .`). Ray said: {error.strip()}"
                    ),
                )
        if worker.packs:
            events.append(PackFailed(pack_id=worker.packs[0][0].pack_id, cause=cause, error=error))
            self._queue.extendleft(task for task, _ in reversed(list(worker.packs)[1:]))
        self._looked = 0.0
        self._look()

    def _look(self) -> None:
        """Hire as many workers as the cluster now holds (nodes die and join)."""
        now = time.monotonic()
        if now - self._looked < LOOK_S and self._pool:
            return
        self._looked = now
        for _ in range(self._request.shape(cluster_nodes()).workers - len(self._pool)):
            self._hire()

    def _kill(self, worker: _Worker) -> None:
        import ray

        with contextlib.suppress(Exception):  # it may be dead already
            ray.kill(worker.actor, no_restart=True)

    def close(self) -> None:
        """Kill the actors; shut down the Ray that was started here, or disconnect from the cluster."""
        if self._closed:
            return
        self._closed = True
        self._queue.clear()
        for worker in self._pool:
            self._kill(worker)
        self._pool.clear()
        if self._owns_ray:
            disconnect()


def worker_died(error: BaseException) -> bool:
    """Whether an error of a call means that its actor will answer no more calls."""
    import ray.exceptions as e

    return isinstance(error, (e.RayActorError, e.WorkerCrashedError, e.NodeDiedError, e.OutOfMemoryError))


def explain(error: BaseException) -> tuple[Cause, str]:
    """The cause of an exception that a call on a worker ended with, and its text."""
    import ray.exceptions as e

    text = str(error)
    if isinstance(error, e.OutOfMemoryError) or (isinstance(error, e.RayActorError) and "OutOfMemory" in text):
        return Cause.OUT_OF_MEMORY, text
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
