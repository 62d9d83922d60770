"""Decides what happens after a failure. Each cause has one policy; `Runner._pack_failed` carries it out.

Only trials that have not ended are split or retried.

| cause | policy |
|---|---|
| user error | split the pack until the trial that raises is found; it fails, the others run on |
| out of memory | split the pack; a trial that does not fit alone fails |
| worker lost | retry; a pack that lost three workers is split; a single trial that lost three fails |
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from orchestrator.dispatch.base import Cause

LOSSES_BEFORE_BLAME = 3
"""A pack that lost this many workers in a row is suspected to be the cause."""
IDENTICAL_FAILURES_BEFORE_STOP = 5
"""A sweep stops after this many trials with the same error, if none has succeeded."""


class Remedy(Enum):
    """What to do with the unfinished trials of a failed pack."""

    RETRY = "retry"
    SPLIT = "split"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """A remedy, and the error that a failed trial is recorded with."""

    remedy: Remedy
    error: str = ""


def decide(cause: Cause, *, size: int, losses: int, error: str) -> Decision:
    """Decide what to do with a failed pack.

    Args:
        cause: of the failure.
        size: number of its unfinished trials.
        losses: number of workers it has lost, including this one; 0 after a split, 1 if a trial of the pack has ended.
        error: traceback, or the engine's message.
    """
    if cause is Cause.WORKER_LOST and losses < LOSSES_BEFORE_BLAME:
        return Decision(remedy=Remedy.RETRY)
    if size > 1:
        return Decision(remedy=Remedy.SPLIT)
    if cause is Cause.OUT_OF_MEMORY:
        advice = (
            "The trial does not fit into a worker's memory, even alone. Next: fewer workers "
            "(`--set resources.workers=...`), a machine with more memory, or a smaller model."
        )
        return Decision(remedy=Remedy.FAIL, error=f"{error.rstrip()}\n{advice}")
    if cause is Cause.WORKER_LOST:
        advice = (
            f"Alone in its pack, this trial lost {losses} workers. Likely causes: its process was killed for memory, "
            "or native code crashed. Next: run it with `--inline` to observe it, or give workers more memory."
        )
        return Decision(remedy=Remedy.FAIL, error=f"{error.rstrip()}\n{advice}")
    return Decision(remedy=Remedy.FAIL, error=error)


_FRAME = re.compile(r'File "(?P<file>.+?)", line (?P<line>\d+)')


def last_line(error: str) -> str:
    """The last line of a traceback, which names the exception."""
    lines = [line for line in error.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "unknown error"


def signature(error: str) -> tuple[str, str]:
    """The exception's type and the line that raised it: failures that share both count as the same."""
    frames = _FRAME.findall(error)
    last = last_line(error)
    return last.partition(":")[0], ":".join(frames[-1]) if frames else last


@dataclass(kw_only=True)
class FailureWatch:
    """Detects a sweep in which many trials fail with the same error before any succeeds."""

    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _succeeded: bool = False

    def success(self) -> None:
        """A trial finished: later failures do not stop the sweep."""
        self._succeeded = True
        self._counts.clear()

    def failure(self, error: str) -> bool:
        """A trial failed; return whether to stop the sweep."""
        if self._succeeded:
            return False
        key = signature(error)
        self._counts[key] = self._counts.get(key, 0) + 1
        return self._counts[key] >= IDENTICAL_FAILURES_BEFORE_STOP
