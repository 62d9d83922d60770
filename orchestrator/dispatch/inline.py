"""Runs packs in this process, one after another: for tests, and for debugging a job (`--inline`)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence

from orchestrator.dispatch.base import Dispatcher, Event, PackTask
from orchestrator.dispatch.worker import execute


class InlineDispatcher(Dispatcher):
    """One worker, the calling process. A pack advances by one event with each `poll`.

    The timeout of `poll` cannot interrupt a job.
    """

    workers = 1

    def __init__(
        self, *, device: str = "cpu", flush_s: float = 0.5, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._device, self._flush_s, self._clock = device, flush_s, clock
        self._queue: deque[PackTask] = deque()
        self._running: Generator[Event, None, None] | None = None

    def submit(self, tasks: Sequence[PackTask]) -> None:
        """Queue packs; the first starts with the next `poll`."""
        self._queue.extend(tasks)

    def poll(self, timeout_s: float) -> list[Event]:
        """Run until the next event and return it; return nothing if no pack is left."""
        while self._running is not None or self._queue:
            if self._running is None:
                task = self._queue.popleft()
                self._running = execute(task, device=self._device, flush_s=self._flush_s, clock=self._clock)
            event = next(self._running, None)
            if event is not None:
                return [event]
            self._running = None
        return []

    def close(self) -> None:
        """Drop the queue and end the running pack."""
        self._queue.clear()
        if self._running is not None:
            self._running.close()
            self._running = None
