"""A cluster that is not there: packs take the time they are said to take, on a virtual clock.

The driver's own work is real and takes its real time; waiting takes none. So a run on thousands of
workers shows in seconds how busy the driver would be, and from how many workers on it would be the
bottleneck.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Sequence

from orchestrator.dispatch.base import Dispatcher, Event, PackEnded, PackTask, Progress

Results = Callable[[PackTask], Progress]
"""What the workers of the simulation report of a pack: its rows and the ends of its trials."""


class VirtualClock:
    """Seconds of driver work, which are real, and of waiting, which are not."""

    def __init__(self, real: Callable[[], float] = time.perf_counter) -> None:
        self._real = real
        self._origin = real()
        self.waited_s = 0.0
        """Virtual seconds that nobody waited for."""
        self._outside_s = 0.0

    def __call__(self) -> float:
        """Virtual seconds since the start."""
        return self.worked_s + self.waited_s

    @property
    def worked_s(self) -> float:
        """Real seconds of the driver's own work."""
        return self._real() - self._origin - self._outside_s

    def wait(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.waited_s += max(0.0, seconds)

    def not_counted(self, since: float) -> None:
        """Leave out what has passed since `since` (a reading of `real`): it was a worker's work."""
        self._outside_s += self._real() - since

    def real(self) -> float:
        """The real clock, for `not_counted`."""
        return self._real()


class SimulatedDispatcher(Dispatcher):
    """`workers` workers, each running one pack at a time for as long as `seconds` says.

    Args:
        workers: how many packs run at the same time.
        seconds: the duration of a pack, from a measurement or a cost model.
        results: what the workers report at the pack's end.
        clock: shared with the runner, so that its own times are virtual too.
    """

    def __init__(
        self, *, workers: int, seconds: Callable[[PackTask], float], results: Results, clock: VirtualClock
    ) -> None:
        self._workers, self._seconds, self._results, self._clock = workers, seconds, results, clock
        self._waiting: deque[PackTask] = deque()
        self._running: list[tuple[float, int, PackTask]] = []
        self._started = 0
        self.busy_s = 0.0
        """Virtual seconds of all workers' training together."""

    @property
    def workers(self) -> int:
        """As given."""
        return self._workers

    def submit(self, tasks: Sequence[PackTask]) -> None:
        """Queue packs; those for which a worker is free start now."""
        self._waiting.extend(tasks)
        self._start(self._clock())

    def _start(self, now: float) -> None:
        while self._waiting and len(self._running) < self._workers:
            task = self._waiting.popleft()
            self._started += 1
            heapq.heappush(self._running, (now + self._seconds(task), self._started, task))

    def poll(self, timeout_s: float) -> list[Event]:
        """Packs that have ended by now; else the clock moves on to the next end, or by `timeout_s`."""
        now = self._clock()
        if self._running and self._running[0][0] > now:
            self._clock.wait(min(timeout_s, self._running[0][0] - now))
        elif not self._running:
            self._clock.wait(timeout_s)
        now = self._clock()
        events: list[Event] = []
        while self._running and self._running[0][0] <= now:
            ended_at, _, task = heapq.heappop(self._running)
            began = self._clock.real()
            progress = self._results(task)
            self._clock.not_counted(began)
            seconds = self._seconds(task)
            self.busy_s += seconds
            events += [progress, PackEnded(pack_id=task.pack_id, train_s=seconds)]
            # The worker took its next pack when this one ended, not when the driver noticed.
            if self._waiting:
                self._start(ended_at)
        return events

    def close(self) -> None:
        """Forget all packs."""
        self._waiting.clear()
        self._running.clear()
