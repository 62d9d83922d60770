"""A simulated cluster: each pack takes a stated time on a virtual clock.

The driver's work is real and takes real time; waiting takes none. A run on thousands of workers therefore shows within
seconds how busy the driver would be, and at which number of workers it becomes the bottleneck.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Sequence

from orchestrator.dispatch.base import Dispatcher, Event, PackEnded, PackProgress, PackTask

Results = Callable[[PackTask], PackProgress]
"""Makes the rows and results that a simulated worker reports for a pack."""


class VirtualClock:
    """Counts real seconds of the driver's work and virtual seconds of waiting."""

    def __init__(self, real: Callable[[], float] = time.perf_counter) -> None:
        self.real = real
        """The real clock, for `not_counted`."""
        self._origin = real()
        self.waited_s = self._excluded_s = 0.0

    def __call__(self) -> float:
        """Virtual seconds since the start."""
        return self.worked_s + self.waited_s

    @property
    def worked_s(self) -> float:
        """Real seconds of the driver's own work."""
        return self.real() - self._origin - self._excluded_s

    def wait(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.waited_s += max(0.0, seconds)

    def not_counted(self, since: float) -> None:
        """Exclude the time since `since`, a reading of `real`: it was a worker's work."""
        self._excluded_s += self.real() - since


class SimulatedDispatcher(Dispatcher):
    """Simulates `workers` workers that run one pack at a time.

    Args:
        workers: how many packs run at the same time.
        seconds: returns the duration of a pack, from a measurement or a cost model.
        results: returns what the worker reports at the pack's end.
        clock: shared with the runner, so that its times are virtual too.
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
        """As given to the constructor."""
        return self._workers

    def submit(self, tasks: Sequence[PackTask]) -> None:
        """Queue packs; they start now as far as workers are free."""
        self._waiting.extend(tasks)
        self._start(self._clock())

    def _start(self, now: float) -> None:
        while self._waiting and len(self._running) < self._workers:
            task = self._waiting.popleft()
            self._started += 1
            heapq.heappush(self._running, (now + self._seconds(task), self._started, task))

    def poll(self, timeout_s: float) -> list[Event]:
        """Return what has ended by now; otherwise advance the clock to the next end, at most by `timeout_s`."""
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
            # The worker took its next pack when this one ended, not when the driver noticed it.
            if self._waiting:
                self._start(ended_at)
        return events

    def close(self) -> None:
        """Drop all packs."""
        self._waiting.clear()
        self._running.clear()
