"""Which trials come next: the ask/tell contract. The driver makes both calls."""

from __future__ import annotations

from abc import ABC, abstractmethod

from orchestrator.records import TrialResult
from orchestrator.trial import Trial


class Sampler(ABC):
    """Decides which trials to run. Knows nothing of packs, workers or records."""

    @abstractmethod
    def ask(self, count: int) -> list[Trial]:
        """Up to `count` trials, none of them asked before; fewer or none while it waits for results, or at its end."""

    @abstractmethod
    def tell(self, result: TrialResult) -> None:
        """A trial has ended. Trials may be told in any order."""

    @property
    @abstractmethod
    def exhausted(self) -> bool:
        """Whether no trial will be asked again, whatever is told."""

    @property
    @abstractmethod
    def expected_trials(self) -> int:
        """How many trials it will ask in all: exact for a grid, at most the budget for a search."""
