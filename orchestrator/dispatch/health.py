"""What the pool knows of each node: how often workers died while starting there, and how its packs end.

Free of engines and clocks: every method that needs the time takes it.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

STILLBORN_LIMIT = 3
"""A node on which workers died while starting this often in a row is unlikely to hold any. A run on this machine alone
then ends."""
STILLBORN_LIMIT_OF_CLUSTER = 6
"""On a cluster the run ends when this has happened on every node, and no worker lives: with the pauses, a node may join
for a minute or two."""
STILLBORN_LIMIT_ONCE_LIVED = 10
"""The same if a worker has lived before: a node that died may come back meanwhile (with the pauses, 20 minutes)."""
FIRST_BACKOFF_S = 2.0
"""Pause after the first failed start on a node; doubled with each further one."""
LONGEST_BACKOFF_S = 300.0
FAILURES_BEFORE_PAUSE = 3
"""Failures in a row on a node before it is paused, or as many as it has workers, if that is more."""
REFUTED_BEFORE_EXCLUSION = 3
"""Failures on a node that succeeded elsewhere before it is excluded, if they are half of its latest outcomes."""
OUTCOMES = 20
"""Latest outcomes of a node that are kept."""
EXCLUDED_S = 1800.0
"""How long a node holds no worker, or a GPU gets no packs."""
DEVICE_ERRORS_BEFORE_EXCLUSION = 3
"""Workers in a row that met an error of one GPU before it gets no packs for `EXCLUDED_S`."""


@dataclass(slots=True)
class _Standing:
    """One node."""

    start_failures: int = 0
    """Failed starts in a row; those of workers that started together count once."""
    last_start_failure: float = float("-inf")
    start_error: str = ""
    next_start_at: float = 0.0
    failures: int = 0
    """Failed trials and packs since the last success."""
    last_failure: float = float("-inf")
    proved: bool = False
    """Whether a trial of a pack that began after the last failure has finished."""
    paused_until: float = 0.0
    pauses: int = 0
    excluded_until: float = 0.0
    outcomes: deque[bool] = field(default_factory=lambda: deque(maxlen=OUTCOMES))
    """True: a trial finished; False: a failure that succeeded elsewhere."""
    gpu_errors: Counter[str] = field(default_factory=Counter)
    """Of each GPU since a trial has last finished on it."""
    gpu_paused_until: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class NodeHealth:
    """The standing of every node that has had a worker."""

    _nodes: dict[str, _Standing] = field(default_factory=dict)
    lived: bool = False
    """Whether a worker has ever started anywhere."""

    def _of(self, node: str) -> _Standing:
        return self._nodes.setdefault(node, _Standing())

    def keep(self, alive: set[str]) -> None:
        """Forget the nodes that are gone."""
        for node in self._nodes.keys() - alive:
            del self._nodes[node]

    # --- starting ---

    def start_failed(self, node: str, *, started_at: float, now: float, error: str) -> None:
        """A worker that was started at `started_at` died before it had done anything."""
        standing = self._of(node)
        standing.start_error = error
        if started_at < standing.last_start_failure:
            return  # it started with the one that was counted
        standing.start_failures += 1
        standing.last_start_failure = now
        backoff_s = FIRST_BACKOFF_S * 2.0 ** min(20, standing.start_failures - 1)
        standing.next_start_at = now + min(LONGEST_BACKOFF_S, backoff_s)

    def started(self, node: str) -> None:
        """A worker runs there."""
        self.lived = True
        standing = self._of(node)
        standing.start_failures, standing.next_start_at = 0, 0.0

    def start_failures(self, node: str) -> int:
        """Failed starts since the last worker that ran there."""
        return self._nodes[node].start_failures if node in self._nodes else 0

    def start_error(self, node: str) -> str:
        """What the engine said of the last failed start."""
        return self._nodes[node].start_error if node in self._nodes else ""

    def may_start_in_s(self, node: str, now: float) -> float:
        """Seconds until a worker may be started there; 0: now."""
        return max(0.0, self._nodes[node].next_start_at - now) if node in self._nodes else 0.0

    # --- outcomes of packs ---

    def succeeded(self, node: str, *, began: float) -> None:
        """A trial finished there; its pack began at `began`."""
        standing = self._of(node)
        standing.proved |= began >= standing.last_failure
        standing.failures = standing.pauses = 0
        standing.paused_until = 0.0
        standing.outcomes.append(True)

    def failed(self, node: str, *, workers: int, now: float) -> None:
        """A trial or a pack failed there; pause the node where that is repeated. `workers` run on it."""
        standing = self._of(node)
        standing.failures += 1
        standing.last_failure, standing.proved = now, False
        if standing.failures >= max(FAILURES_BEFORE_PAUSE, workers) and now >= standing.paused_until:
            standing.paused_until = now + min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(20, standing.pauses))
            standing.pauses += 1

    def failures(self, node: str) -> int:
        """Failures there since its last success."""
        return self._nodes[node].failures if node in self._nodes else 0

    def is_proved(self, node: str) -> bool:
        """Whether a trial of a pack that began there after the last failure has finished."""
        return node in self._nodes and self._nodes[node].proved

    def paused(self, node: str, now: float) -> bool:
        """Whether it has failed repeatedly and should get no pack now, if another node can take it."""
        return node in self._nodes and now < self._nodes[node].paused_until

    def any_paused(self, now: float) -> bool:
        """Whether any node is paused."""
        return any(now < standing.paused_until for standing in self._nodes.values())

    def refuted(self, node: str, now: float) -> bool:
        """What failed there finished elsewhere; return whether the node is excluded for it."""
        standing = self._of(node)
        standing.outcomes.append(False)
        count = standing.outcomes.count(False)
        if count < REFUTED_BEFORE_EXCLUSION or 2 * count < len(standing.outcomes) or self.excluded(node, now):
            return False
        standing.excluded_until = now + EXCLUDED_S
        standing.outcomes.clear()
        return True

    def excluded(self, node: str, now: float) -> bool:
        """Whether it should hold no worker now, if another node can."""
        return node in self._nodes and now < self._nodes[node].excluded_until

    def gpu_works(self, node: str, gpu: str) -> None:
        """A trial finished on this GPU."""
        standing = self._of(node)
        standing.gpu_errors.pop(gpu, None)
        standing.gpu_paused_until.pop(gpu, None)

    def pause_gpu(self, node: str, gpu: str, now: float) -> None:
        """It gets no packs for a while."""
        self._of(node).gpu_paused_until[gpu] = now + EXCLUDED_S

    def gpu_paused(self, node: str, gpu: str, now: float) -> bool:
        """Whether it should get no packs now, if another one can take them."""
        return node in self._nodes and now < self._nodes[node].gpu_paused_until.get(gpu, float("-inf"))

    def gpu_failed(self, node: str, gpu: str) -> None:
        """A worker met an error of this GPU; "" where it is not known which."""
        if gpu:
            self._of(node).gpu_errors[gpu] += 1

    def gpu_errors(self, node: str, gpu: str) -> int:
        """Workers that met an error of this GPU since a trial has last finished on it."""
        return self._nodes[node].gpu_errors[gpu] if node in self._nodes else 0

    def is_bad_gpu(self, node: str, gpu: str) -> bool:
        """Whether so many workers in a row met an error of this GPU that it should get no packs."""
        return self.gpu_errors(node, gpu) >= DEVICE_ERRORS_BEFORE_EXCLUSION
