"""When and how the pool says that it waits: packs without news, and reasons why nothing runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.dispatch.base import PackTask

SILENT_S = 60.0
"""A pack without news for this long is mentioned, or for ten times its estimate if that is longer."""
WAIT_S = 30.0
"""A wait is explained after this long; the interval doubles each time."""


@dataclass(slots=True)
class Silence:
    """How long a pack has sent nothing."""

    since: float
    first_s: float
    patience_s: float

    @classmethod
    def of(cls, task: PackTask, now: float) -> Silence:
        """For a pack that is given to a worker."""
        patience_s = max(SILENT_S, 10 * task.expected_s)
        return cls(now, patience_s, patience_s)

    def news(self, now: float) -> None:
        """It sent something, or began."""
        self.since, self.patience_s = now, self.first_s

    def shift(self, seconds: float) -> None:
        """Do not count some seconds."""
        self.since += seconds

    def overdue(self, now: float) -> float | None:
        """Seconds of silence, each time that they have doubled; None in between."""
        if now - self.since < self.patience_s:
            return None
        self.patience_s *= 2
        return now - self.since

    @staticmethod
    def text(silent: Sequence[tuple[float, PackTask, str]]) -> str:
        """The warning for packs that are silent: (seconds, pack, name of its node)."""
        seconds, task, node = max(silent, key=lambda item: item[0])
        first = task.label or task.trial_ids[0][:12]
        trials = f"trial {first}" if len(task.trial_ids) == 1 else f"{len(task.trial_ids)} trials ({first}, ...)"
        more = f", and from {len(silent) - 1} more packs" if len(silent) > 1 else ""
        limit = "" if task.timeout_s is not None else "; resources.trial_timeout sets a limit"
        return f"no news from {trials} on {node} for {seconds:.0f} s{more}{limit}"


def workers_are(count: int) -> str:
    """The beginning of a sentence about so many workers."""
    return "1 worker is" if count == 1 else f"{count} workers are"


class Waiting:
    """Why nothing runs."""

    def __init__(self, worker_needs: str) -> None:
        self._needs = worker_needs
        self._since: float | None = None
        self._next_s = WAIT_S

    def progress(self, now: float) -> None:
        """Something runs or happened, or nothing is left to run."""
        self._since, self._next_s = now, WAIT_S

    def shift(self, seconds: float) -> None:
        """Do not count some seconds."""
        if self._since is not None:
            self._since += seconds

    def due(self, now: float) -> bool:
        """Whether to state the reason now."""
        if self._since is None:
            self._since = now
        if now - self._since < self._next_s:
            return False
        self._next_s *= 2
        return True

    def reason(
        self,
        now: float,
        *,
        requested: int,
        nodes: int,
        lacking: str,
        starting: int,
        stuck: int,
        failed: Sequence[str],
        retry_s: float,
    ) -> str:
        """The reason, in one line.

        Args:
            now: the time.
            requested: workers that an autoscaler was asked for.
            nodes: nodes with room for a worker.
            lacking: what a worker needs and no node has; empty if that is not known to be the reason.
            starting: workers that are starting.
            stuck: those of them on nodes whose resources are in use.
            failed: names of nodes on which workers died while starting.
            retry_s: seconds until the next start.
        """
        waited = f"; waiting for {now - (self._since or now):.0f} s"
        if not nodes:
            asked = f" ({requested} requested)" if requested else ""
            rule = f"no node has room for a worker, which needs {self._needs}"
            if lacking:
                rule = f"{lacking}; a worker needs {self._needs}"
            return f"waiting for the cluster to grow: {rule}{asked}{waited}"
        if stuck:
            use = "it is in use by other programs, or by workers that start slowly"
            return f"no worker has started: one needs {self._needs}, and no node has that free: {use}{waited}"
        if failed and not starting:
            return f"workers died while starting on {', '.join(failed[:3])}; next attempt in {retry_s:.0f} s{waited}"
        if starting:
            return f"{workers_are(starting)} still starting{waited}"
        return f"no worker can take the packs that wait{waited}"
