"""Runs packs in this process, one after another: for tests, and for debugging a job (`--inline`)."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

from orchestrator.checkpoints.saving import ASK_AFTER_S
from orchestrator.dispatch.base import Dispatcher, Event, PackProgress, PackTask
from orchestrator.dispatch.worker import execute

_LEAVE = os._exit


class InlineDispatcher(Dispatcher):
    """One worker, the calling process. A pack advances by one event with each `poll`.

    The timeout of `poll` cannot interrupt a job.

    Args:
        device: where packs train.
        flush_s: how often a pack's measurements become an event.
        clock: seconds, monotonic.
        training: entered for each event of a job, with a function that says whether the pack is worth saving; a signal
            may end such a block early, and its pack with it.
        stopping: whether the run is being stopped; then a pack that is worth it goes on until it is saved.
    """

    workers = 1

    def __init__(
        self,
        *,
        device: str = "cpu",
        flush_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        training: Callable[[Callable[[], bool]], AbstractContextManager[object]] = nullcontext,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._device, self._flush_s, self._clock, self._training = device, flush_s, clock, training
        self._stopping = stopping
        self._worth_saving_at = math.inf
        self._until = math.inf
        """How long a stopped run goes on for a checkpoint."""
        self._queue: deque[PackTask] = deque()
        self._running: Generator[Event, None, None] | None = None

    def submit(self, tasks: Sequence[PackTask]) -> None:
        """Queue packs; the first starts with the next `poll`."""
        self._queue.extend(tasks)

    def poll(self, timeout_s: float) -> list[Event]:
        """Run until the next event and return it; return nothing if no pack is left, or if a signal ended one."""
        events: list[Event] = []
        while self._running is not None or self._queue:
            if self._running is None:
                if self._stopping():
                    break
                self._begin(self._queue.popleft())
            event, ended = None, False
            with self._training(self._is_worth_saving):
                event = next(self._running, None)  # type: ignore[arg-type]
                ended = event is None
            if event is not None:
                events.append(event)
                if not isinstance(event, PackProgress):
                    self._worth_saving_at = math.inf  # it has ended
                elif event.saved is not None:
                    self._worth_saving_at = self._clock() + ASK_AFTER_S
                if not (self._stopping() and self._is_worth_saving() and self._clock() < self._until):
                    break
                continue
            self._running = None
            if not ended or events:
                break
        return events

    def await_saved(self, timeout_s: float) -> None:
        """Go on with a pack that is worth saving, where the signal came between two of its events."""
        self._until = self._clock() + timeout_s
        if self._running is not None and self._is_worth_saving():
            self.poll(timeout_s)

    def _begin(self, task: PackTask) -> None:
        own = os.getpid()

        def refuse(status: int) -> NoReturn:
            """Fails the trial: `os._exit` would end the run without a word. Forked processes and signals may end."""
            if os.getpid() != own or str(sys._getframe(1).f_globals.get("__name__")).startswith("orchestrator."):
                _LEAVE(status)
            raise SystemExit(f"os._exit({status}), which would have ended the run")

        os._exit = refuse  # until the end: a function may run between two events
        asked = lambda: 0.0 if self._stopping() else None  # noqa: E731
        self._running = execute(task, device=self._device, flush_s=self._flush_s, clock=self._clock, asked=asked)
        self._worth_saving_at = math.inf if task.saving is None else self._clock() + ASK_AFTER_S

    def _is_worth_saving(self) -> bool:
        return self._clock() >= self._worth_saving_at

    def close(self) -> None:
        """Drop the queue and end the running pack."""
        os._exit = _LEAVE
        self._queue.clear()
        if self._running is not None:
            self._running.close()
            self._running = None
