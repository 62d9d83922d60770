"""How fast nodes are, and which worker should take which of the last packs where some are slower than others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import numpy as np

UNEVEN = 1.5
"""A worker counts as slow if it takes this many times as long as the fastest one."""
NEWEST = 0.5
"""Weight of the newest pack in an exponential average."""
LEAST_S = 0.5
"""Shorter packs say little of a node."""
MOST_PACKS, MOST_TRIED = 24, 5000
"""For so many packs at most a better schedule is looked for, and so many times a worker is tried for one of them: some
milliseconds."""


class Paces:
    """The time that packs take on each node, relative to their estimates."""

    def __init__(self) -> None:
        self._of_node: dict[str, float] = {}
        self._median = 1.0

    def ended(self, node: str, *, expected_s: float, took_s: float) -> None:
        """A pack has ended."""
        if expected_s <= 0 or took_s < LEAST_S:
            return
        measured, known = took_s / expected_s, self._of_node.get(node)
        self._of_node[node] = measured if known is None else known ** (1 - NEWEST) * measured**NEWEST
        self._median = median(self._of_node.values())

    def of(self, node: str) -> float:
        """Seconds for each second of an estimate; for a node that has ended no pack, that of the median node."""
        return self._of_node.get(node, self._median)


def schedule(packs: Sequence[float], free_s: Sequence[float], paces: Sequence[float]) -> list[int]:
    """The worker of each pack, so that the last pack ends early.

    Longest first, each to the worker on which it ends first. Where few packs are left, other schedules are tried, depth
    first in the same order.

    Args:
        packs: their estimates in seconds.
        free_s: seconds until each worker is free.
        paces: seconds of each worker for each second of an estimate.
    """
    order = sorted(range(len(packs)), key=lambda pack: -packs[pack])
    ends, pace = np.array(free_s, dtype=np.float64), np.array(paces, dtype=np.float64)
    chosen = [0] * len(packs)
    for pack in order:
        then = ends + packs[pack] * pace
        chosen[pack] = worker = int(then.argmin())
        ends[worker] = then[worker]
    if len(packs) > MOST_PACKS:
        return chosen
    search = _Search([packs[pack] for pack in order], free_s, paces, best_s=float(ends.max()))
    search.run()
    if search.best is not None:
        for pack, worker in zip(order, search.best, strict=True):
            chosen[pack] = worker
    return chosen


class _Search:
    """Depth first over the workers of packs that are sorted, the longest first."""

    def __init__(
        self, packs: Sequence[float], free_s: Sequence[float], paces: Sequence[float], *, best_s: float
    ) -> None:
        self._packs, self._paces, self._best_s = packs, paces, best_s
        self._ends = list(free_s)
        self._left = [math.fsum(packs[k:]) for k in range(len(packs) + 1)]
        self._on: list[int] = []
        self._tried = 0
        self.best: list[int] | None = None
        """Where one is better than `best_s`."""

    def run(self) -> None:
        """Try on."""
        place = len(self._on)
        if place == len(self._packs):
            self.best, self._best_s = list(self._on), max(self._ends)
            return
        if self._tried >= MOST_TRIED or _least_s(self._ends, self._paces, self._left[place]) >= self._best_s:
            return
        self._tried += len(self._ends)
        seconds, seen = self._packs[place], set[tuple[float, float]]()
        workers = range(len(self._ends))
        for end, worker in sorted((self._ends[w] + seconds * self._paces[w], w) for w in workers):
            before = self._ends[worker]
            if end >= self._best_s or (before, self._paces[worker]) in seen:
                continue
            seen.add((before, self._paces[worker]))
            self._ends[worker] = end
            self._on.append(worker)
            self.run()
            self._on.pop()
            self._ends[worker] = before


def _least_s(ends: Sequence[float], paces: Sequence[float], left_s: float) -> float:
    """When the last worker ends if packs could be divided: no schedule is shorter."""
    speed = level = 0.0
    for end, pace in sorted(zip(ends, paces, strict=True)):
        if speed and level + left_s / speed <= end:
            break
        left_s -= (end - level) * speed
        level, speed = end, speed + 1 / pace
    return max(*ends, level + left_s / speed)
