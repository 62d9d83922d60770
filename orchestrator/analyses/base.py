"""The base of all kinds of analysis: its keys in a sweep file, and what a sweep must have for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from orchestrator.axes import FileModel, key

if TYPE_CHECKING:
    from orchestrator.analyses.result import Result
    from orchestrator.analyses.source import Source

STEP = "step"
"""Written in place of an axis for the steps of a curve."""


Contradiction = tuple[str, str, str]
"""A key whose value contradicts another's, the rule, and what to do next."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an analysis refers to, by the key that names it."""

    axes: tuple[tuple[str, str], ...] = ()
    """(key, axis) of numeric axes."""
    settings: tuple[tuple[str, str], ...] = ()
    """(key, axis) of axes whose values may be text."""
    observations: tuple[tuple[str, str], ...] = ()
    """(key, observation)."""
    metrics: tuple[tuple[str, str], ...] = ()
    """(key, metric): a curve."""


class Analysis(FileModel, ABC):
    """One entry of `analysis:`; immutable."""

    kind_name: ClassVar[str]
    fewest: ClassVar[int] = 2
    """Values that an axis needs for a job's default to apply."""
    fewest_replicates: ClassVar[int] = 1

    name: str | None = key(
        None,
        "Its name in files and metrics; by default its kind, what it is of, and its axis.",
        "letters, digits, _ and -, at most 80",
        pattern=r"^[A-Za-z0-9_-]{1,80}$",
    )
    level: float = key(0.9, "Confidence level of its intervals.", "a number > 0 and < 1", gt=0, lt=1)

    @property
    def label(self) -> str:
        """Its name in files and metrics."""
        return self.name or self.default_name

    @property
    @abstractmethod
    def default_name(self) -> str:
        """The name where the file gives none."""

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What it refers to."""

    def contradictions(self) -> Sequence[Contradiction]:
        """Keys that contradict each other; none by default."""
        return ()

    @abstractmethod
    def compute(self, source: Source) -> Result:
        """The result, from the record alone."""
