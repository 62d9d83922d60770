"""When a pack is saved: a decision from the time, the measured cost of a checkpoint and the life of nodes.

A checkpoint that costs c seconds, every T seconds, on nodes that live L seconds on average takes c/T of the time and
loses T/(2L) of it; the sum is least at T = sqrt(2 c L) (Young 1974, Communications of the ACM 17, 530).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DEFAULT_S = 300.0
"""Between two checkpoints of a pack while no node was lost."""
MOST_COST = 0.01
"""The share of the time that checkpoints may take while no node was lost."""
LEAST_S = 10.0
"""The shortest time between two checkpoints that is chosen, whatever nodes do: a store serves many workers."""
ASSUMED_COST_S = 0.5
"""Of the first checkpoint."""


def interval_s(cost_s: float, life_s: float | None) -> float:
    """Seconds between two checkpoints of a pack.

    Args:
        cost_s: seconds that a checkpoint takes.
        life_s: mean life of a node; None while none was lost.
    """
    seldom_s = max(DEFAULT_S, cost_s / MOST_COST)
    if life_s is None:
        return seldom_s
    return min(max(LEAST_S, math.sqrt(2 * cost_s * life_s)), seldom_s)


@dataclass(kw_only=True)
class Rhythm:
    """When one pack is saved.

    Args:
        began: when its training began.
        fixed_s: the interval, where the user has set it.
        life_s: see `interval_s`.
    """

    began: float
    fixed_s: float | None = None
    life_s: float | None = None
    cost_s: float = ASSUMED_COST_S
    not_before: float = -math.inf
    """After an attempt that failed: a store that does not answer must not hold the training up again and again."""

    def due(self, now: float) -> bool:
        """Whether to save now."""
        if now < self.not_before:
            return False
        wanted_s = self.fixed_s if self.fixed_s is not None else interval_s(self.cost_s, self.life_s)
        return now - self.began >= wanted_s

    def saved(self, now: float, *, cost_s: float, failed: bool = False) -> None:
        """The pack was saved, or could not be."""
        self.began, self.cost_s = now, cost_s
        self.not_before = now + cost_s / MOST_COST if failed else -math.inf


class NodeLives:
    """The mean life of nodes, from those that were lost and from those that still live.

    With deaths at a constant rate, the time that all nodes have lived together divided by the number of deaths is the
    maximum-likelihood estimate.
    """

    def __init__(self) -> None:
        self._lived_s, self._lost = 0.0, 0
        self._last: float | None = None

    def passed(self, now: float, nodes: int) -> None:
        """So many nodes have been there since the last call."""
        if self._last is not None:
            self._lived_s += nodes * max(0.0, now - self._last)
        self._last = now

    def lost(self) -> None:
        """A node was lost."""
        self._lost += 1

    @property
    def mean_s(self) -> float | None:
        """Seconds; None while no node was lost."""
        return max(self._lived_s, 1.0) / self._lost if self._lost else None
