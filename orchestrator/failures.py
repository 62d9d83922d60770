"""Decides what happens after a failure: each cause has one policy (docs/failures.md); the runner carries it out.

Only trials that have not ended are split or retried.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import Enum

from orchestrator.dispatch.base import Cause
from orchestrator.printable import last_line

LOSSES_BEFORE_BLAME = 3
"""A pack that lost this many workers in a row is suspected to be the cause."""
IDENTICAL_FAILURES_BEFORE_STOP = 5
"""A sweep stops after this many trials with the same error, if none has succeeded."""
CONFIRMATIONS = 3
"""An error that so many trials raised again in a fresh worker is the trials' own: others need no fresh worker."""

SIGNATURES_KEPT = 1000
"""Different errors that are remembered."""


class Remedy(Enum):
    """What to do with the unfinished trials of a failed pack."""

    RETRY = "retry"
    SPLIT = "split"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """What earlier attempts of a pack mean for the next one; the default is a first attempt."""

    losses: int = 0
    """Workers that the pack has lost."""
    avoid_nodes: frozenset[str] = frozenset()
    """Nodes on which it failed."""
    fresh_worker: bool = False
    alone: bool = False
    """It ran out of memory, and runs with no other pack on its node."""
    error: str = ""
    """Error of the first attempt of a single trial that raised or timed out; empty if it did neither."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """A remedy, what the next attempt has to know, and the error that a failed trial is recorded with."""

    remedy: Remedy
    attempt: Attempt = Attempt()
    error: str = ""


def decide(
    cause: Cause, *, size: int, attempt: Attempt, error: str, node: str = "", progressed: bool = False
) -> Decision:
    """Decide what to do with a failed pack.

    Args:
        cause: of the failure.
        size: number of its unfinished trials.
        attempt: the one that failed.
        error: traceback, or the engine's message.
        node: where it failed; empty if unknown.
        progressed: whether a trial of the pack has ended, or the pack was saved: then it is not suspected of killing
            its workers.
    """
    if cause is Cause.NODE_LOST:
        return Decision(remedy=Remedy.RETRY, attempt=attempt)
    nodes = frozenset({node} - {""})
    if cause is Cause.WORKER_LOST:
        losses = 1 if progressed else attempt.losses + 1
        if losses < LOSSES_BEFORE_BLAME:
            avoid = nodes if progressed else attempt.avoid_nodes | nodes
            if attempt.error:  # to avoid every node is to avoid none: what it raised weighs more
                avoid = attempt.avoid_nodes
            return Decision(remedy=Remedy.RETRY, attempt=replace(attempt, losses=losses, avoid_nodes=avoid))
    if size > 1:
        return Decision(remedy=Remedy.SPLIT)
    if cause in (Cause.USER_ERROR, Cause.TIMED_OUT) and not attempt.error:
        return Decision(remedy=Remedy.RETRY, attempt=Attempt(avoid_nodes=nodes, fresh_worker=True, error=error))
    if cause is Cause.OUT_OF_MEMORY and not attempt.alone:
        return Decision(remedy=Remedy.RETRY, attempt=replace(attempt, fresh_worker=True, alone=True))
    return Decision(remedy=Remedy.FAIL, error=_final_error(cause, attempt, error))


def _final_error(cause: Cause, attempt: Attempt, error: str) -> str:
    """The error that a trial fails with after its last attempt."""
    if cause is Cause.OUT_OF_MEMORY:
        advice = (
            "The trial does not fit into a worker's memory, even alone. Next: fewer workers "
            "(`--set resources.workers=...`), a machine with more memory, or a smaller model."
        )
        return _with_advice(error, advice)
    if cause is Cause.WORKER_LOST:
        advice = (
            f"Alone in its pack, this trial lost {LOSSES_BEFORE_BLAME} workers. Likely causes: its process was killed "
            "for memory, or native code crashed. Next: run it with `--inline` to observe it, or give workers more "
            "memory."
        )
        return _with_advice(error, advice)
    if cause is Cause.TIMED_OUT and "resources.trial_timeout" not in error:
        return _with_advice(error, "The trial exceeded resources.trial_timeout.")
    if attempt.error and signature(attempt.error) != signature(error):
        return f"The second attempt failed differently: {last_line(error)}\nThe first:\n{attempt.error}"
    return attempt.error or error


def _with_advice(error: str, advice: str) -> str:
    """The advice in one line with the cause, because lists of failures show the last line only."""
    error = error.rstrip()
    if not error.endswith(last_line(error)):  # its message has several lines
        return f"{error}\n{advice}".lstrip()
    return f"{error}{'' if error.endswith('.') else '.'} {advice}"


_NUMBER = re.compile(r"\b[0-9a-f]*\d[0-9a-f.]*")
_FRAME = re.compile(r'File "(?P<file>.+?)", line (?P<line>\d+)')


def signature(error: str) -> tuple[str, str]:
    """The exception's type and the line that raised it: failures that share both count as the same.

    Without a traceback, it is the last line, in which numbers may differ (of processes, of memory).
    """
    frames = _FRAME.findall(error)
    last = last_line(error) if frames else _NUMBER.sub("0", last_line(error))
    return last.partition(":")[0], ":".join(frames[-1]) if frames else last


@dataclass(kw_only=True)
class FailureWatch:
    """Detects a sweep in which many trials fail with the same error before any succeeds."""

    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _confirmed: dict[tuple[str, str], int] = field(default_factory=dict)
    """Trials that raised the same error again in a second attempt."""
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

    def raised_again(self, error: str) -> None:
        """A trial raised the same error in its second attempt."""
        key = signature(error)
        if len(self._confirmed) < SIGNATURES_KEPT or key in self._confirmed:
            self._confirmed[key] = self._confirmed.get(key, 0) + 1

    def is_confirmed(self, error: str) -> bool:
        """Whether so many trials raised this error again that it does not depend on the worker."""
        return self._confirmed.get(signature(error), 0) >= CONFIRMATIONS
