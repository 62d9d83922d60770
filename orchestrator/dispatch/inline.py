"""Runs packs in this process, one after another: for tests, and for debugging a job (`--inline`)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext

from orchestrator.dispatch.base import Dispatcher, Event, PackTask
from orchestrator.dispatch.worker import execute


class InlineDispatcher(Dispatcher):
    """One worker, the calling process. A pack advances by one event with each `poll`.

    The timeout of `poll` cannot interrupt a job.

    Args:
        device: where packs train.
        flush_s: how often a pack's measurements become an event.
        clock: seconds, monotonic.
        training: entered for each event of a job; a signal may end such a block early, and its pack with it.
    """

    workers = 1

    def __init__(
        self,
        *,
        device: str = "cpu",
        flush_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        training: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._device, self._flush_s, self._clock, self._training = device, flush_s, clock, training
        self._queue: deque[PackTask] = deque()
        self._running: Generator[Event, None, None] | None = None

    def submit(self, tasks: Sequence[PackTask]) -> None:
        """Queue packs; the first starts with the next `poll`."""
        self._queue.extend(tasks)

    def poll(self, timeout_s: float) -> list[Event]:
        """Run until the next event and return it; return nothing if no pack is left, or if a signal ended one."""
        while self._running is not None or self._queue:
            if self._running is None:
                task = self._queue.popleft()
                self._running = execute(task, device=self._device, flush_s=self._flush_s, clock=self._clock)
            event, ended = None, False
            with self._training():
                event = next(self._running, None)
                ended = event is None
            if event is not None:
                return [event]
            self._running = None
            if not ended:
                break
        return []

    def close(self) -> None:
        """Drop the queue and end the running pack."""
        self._queue.clear()
        if self._running is not None:
            self._running.close()
            self._running = None
