"""The uncertain area against the trials spent, as recorded by a search, or from refits to its first trials."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.phases.map.surface_map import FittedMap
from orchestrator.surface.base import Evidence

PREFIXES = 12
"""Refits, where the search recorded no curve."""
FEWEST = 16
"""Trials of the first refit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ProgressCurve:
    """P points."""

    trials: NDArray[np.int64]
    """(P,) trials that had ended, ascending."""
    uncertain_area: NDArray[np.float64]
    """(P,) the share of the box in the 90% band after them."""
    refitted: bool
    """Whether it was computed afterwards, from the first trials in the order of the record."""

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, float]]) -> ProgressCurve:
        """The curve that a search recorded: (trials, uncertain area), in any order; of equal trials the last counts."""
        kept = sorted(dict(pairs).items())
        return cls(
            trials=np.array([n for n, _ in kept], dtype=np.int64),
            uncertain_area=np.array([a for _, a in kept], dtype=np.float64),
            refitted=False,
        )

    def through(self, trials: int, uncertain_area: float) -> ProgressCurve:
        """The curve with one more point, if that has more trials than any."""
        if len(self.trials) and trials <= self.trials[-1]:
            return self
        return replace(
            self, trials=np.append(self.trials, trials), uncertain_area=np.append(self.uncertain_area, uncertain_area)
        )

    def pairs(self) -> tuple[tuple[int, float], ...]:
        """(trials, uncertain area) of every point."""
        return tuple(zip(self.trials.tolist(), self.uncertain_area.tolist(), strict=True))


def refitted(map_: FittedMap) -> ProgressCurve:
    """The curve from refits to about a dozen prefixes of the trials, evenly spaced in the logarithm.

    With several slices, a prefix holds the same share of the trials of each.
    """
    total = sum(len(part.evidence) for part in map_.fitted)
    spaced = np.geomspace(min(FEWEST, total), total, PREFIXES) if total else np.zeros(0)
    sizes = np.unique(np.rint(spaced).astype(np.int64))
    areas = []
    for size in sizes.tolist():
        if size == total:
            areas.append(map_.uncertain_area())
            continue
        parts = [part.fit(_prefix(part.evidence, -(-size * len(part.evidence) // total))) for part in map_.fitted]
        areas.append(float(np.mean([part.uncertain_area() for part in parts])))
    return ProgressCurve(trials=sizes, uncertain_area=np.array(areas, dtype=np.float64), refitted=True)


def _prefix(of: Evidence, n: int) -> Evidence:
    return Evidence(x=of.x[:n], label=of.label[:n], value=of.value[:n], censored=of.censored[:n])


def write_csv(curve: ProgressCurve, path: Path) -> None:
    """Write `trials,uncertain_area,refitted`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trials", "uncertain_area", "refitted"])
        for n, area in zip(curve.trials, curve.uncertain_area, strict=True):
            writer.writerow([int(n), repr(float(area)), str(curve.refitted).lower()])
