"""Packs run in this very process, one after another: for tests, and for debugging a job (`--inline`)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from orchestrator.dispatch.base import Dispatcher, Event, PackTask
from orchestrator.dispatch.worker import execute


class InlineDispatcher(Dispatcher):
    """One worker, which is the caller: a pack advances while `poll` is called, by one batch of rows.

    `poll` returns after one event, however long that takes: its timeout cannot interrupt a job.
    """

    def __init__(
        self, *, device: str = "cpu", flush_s: float = 0.5, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._device, self._flush_s, self._clock = device, flush_s, clock
        self._queue: deque[PackTask] = deque()
        self._running: Iterator[Event] | None = None

    @property
    def workers(self) -> int:
        """One: the caller."""
        return 1

    def submit(self, tasks: Sequence[PackTask]) -> None:
        """Queue packs; the first starts with the next `poll`."""
        self._queue.extend(tasks)

    def poll(self, timeout_s: float) -> list[Event]:
        """Run on until one event, and return it; none where no pack is left."""
        while True:
            if self._running is None:
                if not self._queue:
                    return []
                self._running = execute(
                    self._queue.popleft(), device=self._device, flush_s=self._flush_s, clock=self._clock
                )
            event = next(self._running, None)
            if event is not None:
                return [event]
            self._running = None

    def close(self) -> None:
        """Drop what is queued and end the pack that runs."""
        self._queue.clear()
        if self._running is not None:
            self._running.close()  # type: ignore[attr-defined]
            self._running = None
