"""A failure has a cause, and the cause has a policy. Pure decisions: nothing here runs or records.

| cause | policy |
|---|---|
| user error | halve the pack until the trial is found that raises; it fails, the rest goes on |
| out of memory | halve the pack; a trial that does not fit alone fails |
| worker lost | try again, freely; a pack that lost three workers is halved; a trial that did so alone fails |
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from orchestrator.dispatch.base import Cause

LOSSES_BEFORE_BLAME = 3
"""A pack that lost this many workers, one after another, is itself suspected."""
IDENTICAL_FAILURES_BEFORE_STOP = 5
"""So many different trials that fail alike, and none that succeeds: the sweep is stopped."""


class Remedy(Enum):
    """What to do with the trials of a broken pack that have not ended."""

    RETRY = "retry"
    SPLIT = "split"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """A remedy, with the text that a failed trial is recorded with."""

    remedy: Remedy
    error: str = ""


def decide(cause: Cause, *, size: int, losses: int, error: str) -> Decision:
    """What to do with a broken pack.

    Args:
        cause: why it broke.
        size: how many of its trials have not ended.
        losses: how many workers it has lost, this one included; counted from 0 again after a split.
        error: traceback, or what the engine said.
    """
    if cause is Cause.WORKER_LOST and losses < LOSSES_BEFORE_BLAME:
        return Decision(remedy=Remedy.RETRY)
    if size > 1:
        return Decision(remedy=Remedy.SPLIT)
    if cause is Cause.OUT_OF_MEMORY:
        advice = (
            "The trial does not fit into a worker's memory alone. Next: fewer workers "
            "(`--set resources.workers=...`), a machine with more memory, or a smaller model."
        )
        return Decision(remedy=Remedy.FAIL, error=f"{error.rstrip()}\n{advice}")
    if cause is Cause.WORKER_LOST:
        advice = (
            f"Alone in its pack, this trial lost {losses} workers. Suspected: its process was killed for memory, "
            "or native code crashed. Next: run it with `--inline` to see it happen, or give workers more memory."
        )
        return Decision(remedy=Remedy.FAIL, error=f"{error.rstrip()}\n{advice}")
    return Decision(remedy=Remedy.FAIL, error=error)


_FRAME = re.compile(r'File "(?P<file>.+?)", line (?P<line>\d+)')


def last_line(error: str) -> str:
    """The line of a traceback that says what happened."""
    lines = [line for line in error.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "unknown error"


def signature(error: str) -> tuple[str, str]:
    """What makes two failures the same: the exception's type, and the place that raised it."""
    frames = _FRAME.findall(error)
    kind = last_line(error).partition(":")[0]
    return kind, ":".join(frames[-1]) if frames else last_line(error)


@dataclass(kw_only=True)
class FailureWatch:
    """Notices a sweep that can only fail: many trials fail alike before any succeeds."""

    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _succeeded: bool = False

    def success(self) -> None:
        """A trial finished: from now on failures are the trials' own."""
        self._succeeded = True
        self._counts.clear()

    def failure(self, error: str) -> bool:
        """A trial failed; whether that is reason to stop the sweep."""
        if self._succeeded:
            return False
        key = signature(error)
        self._counts[key] = self._counts.get(key, 0) + 1
        return self._counts[key] >= IDENTICAL_FAILURES_BEFORE_STOP
