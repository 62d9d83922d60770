"""Which trials come next: the ask/tell contract. The driver owns both calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jobs.job import Observations
from orchestrator.trial import Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one trial ended, as a sampler is told it."""

    trial: Trial
    phase: str | None
    """None where the trial failed (a diverged trial has a phase)."""
    observations: Observations


class Sampler(ABC):
    """Decides which trials to run; knows nothing of packs, workers or records."""

    @abstractmethod
    def ask(self, count: int) -> list[Trial]:
        """Up to `count` trials, none of them asked before; fewer or none where it waits or has ended."""

    @abstractmethod
    def tell(self, outcome: Outcome) -> None:
        """A trial has ended. Trials may be told in any order."""

    @property
    @abstractmethod
    def exhausted(self) -> bool:
        """Whether no trial will ever be asked again, whatever is told."""

    @property
    @abstractmethod
    def expected_trials(self) -> int:
        """How many trials it will ask in all: exact for a grid, at most the budget for a search."""
