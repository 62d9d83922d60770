"""The grid: every trial of the sweep, in order, whatever the results are."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.records import TrialResult
from orchestrator.search.base import Sampler
from orchestrator.trial import Trial


class GridSampler(Sampler):
    """Asks each of the given trials once. A trial given twice is asked once."""

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._trials = list({trial.id: trial for trial in trials}.values())
        self._next = 0

    def ask(self, count: int) -> list[Trial]:
        """The next `count` trials of the grid, fewer at its end."""
        asked = self._trials[self._next : self._next + max(count, 0)]
        self._next += len(asked)
        return asked

    def tell(self, result: TrialResult) -> None:
        """Ignored: a grid is fixed in advance."""

    @property
    def exhausted(self) -> bool:
        """Whether every trial has been asked."""
        return self._next == len(self._trials)

    @property
    def expected_trials(self) -> int:
        """How many trials the grid has: exact."""
        return len(self._trials)
