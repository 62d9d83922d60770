"""Times to an event of some trials, and the choice of a setting for each group on half of the replicates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jobs.job import Scalar
    from orchestrator.analyses.source import Floats
    from orchestrator.analysis.estimate import Booleans

Values = tuple["Scalar | None", ...]
"""Values of the tuned axes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Times:
    """Bounds (above, to] of the times of N trials."""

    above: Floats
    to: Floats
    """(N,) inf where the event was not reached."""
    replicates: tuple[int, ...]
    tuned: tuple[Values, ...] = ()
    """(N,) values of the axes that are chosen; empty where none are."""

    def __len__(self) -> int:
        return len(self.above)

    def where(self, chosen: Booleans) -> Times:
        """Those of these trials."""
        at = np.flatnonzero(chosen).tolist()
        return Times(
            above=self.above[at],
            to=self.to[at],
            replicates=tuple(self.replicates[k] for k in at),
            tuned=tuple(self.tuned[k] for k in at) if self.tuned else (),
        )

    def of(self, replicates: Sequence[int]) -> Times:
        """The first trial of each of these replicates, in this order."""
        at = [self.replicates.index(replicate) for replicate in replicates]
        return Times(above=self.above[at], to=self.to[at], replicates=tuple(replicates))


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuning:
    """What was chosen on the first half of the replicates, and the trials of the other half."""

    chosen: Mapping[Scalar | None, Values]
    """Value that is compared -> values of the tuned axes."""
    tried: Mapping[Scalar | None, Sequence[Values]]
    """Value that is compared -> the settings among which it was chosen."""
    parts: Mapping[Scalar | None, Times]
    """Value that is compared -> the trials of the chosen setting, of the other half alone."""
    tuned_on: tuple[int, ...]
    """Replicates on which the settings were chosen."""


def tune(parts: Mapping[Scalar | None, Times]) -> Tuning:
    """Choose a setting for each part on the first half of the replicates; keep its trials of the other half.

    The chosen setting has the shortest median time; of those with the same median (such as infinity), the one that
    more trials reach, then the one with the shortest mean time of those.
    """
    numbers = sorted({number for times in parts.values() for number in times.replicates})
    first = frozenset(numbers[: len(numbers) // 2])
    chosen: dict[Scalar | None, Values] = {}
    tried: dict[Scalar | None, Sequence[Values]] = {}
    kept: dict[Scalar | None, Times] = {}
    for value, times in parts.items():
        early = np.array([number in first for number in times.replicates], dtype=np.bool_)
        settings = list(dict.fromkeys(s for s, known in zip(times.tuned, early, strict=True) if known))
        if not settings:
            continue
        masks = {s: np.array([other == s for other in times.tuned], dtype=np.bool_) for s in settings}
        best = min(settings, key=lambda s: _slowness(times.where(masks[s] & early)))
        left = times.where(masks[best] & ~early)
        if len(left):
            chosen[value], tried[value], kept[value] = best, settings, left
    return Tuning(chosen=chosen, tried=tried, parts=kept, tuned_on=tuple(sorted(first)))


def _slowness(times: Times) -> tuple[float, float, float]:
    """What `tune` minimises."""
    from orchestrator.analysis.survival import median_time

    reached = np.isfinite(times.to)
    mean = float(times.to[reached].mean()) if reached.any() else math.inf
    return median_time(times.above, times.to).to, float((~reached).mean()), mean
