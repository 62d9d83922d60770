"""Measured over counted training time, for each kind of pack.

A kind is what packs with one key have in common, at one share of measuring in their work. Within a
kind, the ratio of actual to counted seconds depends on how large the tensor operations are (the
shape of a pack, see `calibration.Machine.shape`): it is kept at a few shapes, and interpolated.
Seconds are CPU-seconds on an uncontended core (`dispatch.worker.busy_clock`): the load of other programs is not a
property of a pack (see `orchestrator.plan.rehearsal.slowdown`).
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.job import Cost

BIN = 0.25
"""Packs whose shapes differ by less are one point."""
MARGIN = 1.5
"""How far beyond the shapes that were seen a kind counts as known: what was timed changes the packs a little."""
NEWEST = 0.5
"""Weight of the newest run where an earlier one was seen; the first run outweighs the rehearsal."""
RATIO_BOUNDS = (0.02, 50.0)
"""A ratio beyond these is an accident, not a property of the kind."""


def kind_of(job: str, version: int, key: Hashable, cost: Cost, at_once: int) -> str:
    """The name of the kind of a pack.

    Args:
        key: its pack key.
        cost: of any pack of this key; says how many steps there are to one report.
        at_once: how many workers of one machine run at the same time: they share its memory and its cores.
    """
    pace = round(math.log2(max(1.0, cost.steps / max(1, cost.reports))))
    digest = hashlib.blake2b(repr((key, pace, at_once)).encode(), digest_size=8).hexdigest()
    return f"{job}@{version}/{digest}"


@dataclass(frozen=True, kw_only=True)
class KindHistory:
    """What was seen of one kind of pack."""

    points: tuple[tuple[float, float], ...] = ()
    """(shape, actual over counted seconds), by increasing shape."""
    spans: tuple[float, float] | None = None
    """The least and the largest shape of the packs that a rehearsal stood for (it timed a few of them)."""
    runs: int = 0
    """Runs that were learnt from; 0: a rehearsal alone."""
    first_s: float = 0.0
    """What a worker's first pack takes more than the next: reading data, first use of the libraries."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> KindHistory:
        """From what `dataclasses.asdict` and JSON make of it."""
        points = tuple((float(x), float(ratio)) for x, ratio in data["points"])
        spans = data["spans"] and (float(data["spans"][0]), float(data["spans"][1]))
        return cls(points=points, spans=spans, runs=int(data["runs"]), first_s=float(data["first_s"]))

    def knows(self, shape: float) -> bool:
        """Whether packs of about this shape were seen, or stood for by what was."""
        shapes = [x for x, _ in self.points] + list(self.spans or ())
        return bool(shapes) and min(shapes) - MARGIN <= shape <= max(shapes) + MARGIN

    def ratio(self, shape: float) -> float:
        """Log-linear between the points, constant beyond them; 1 without any."""
        if not self.points:
            return 1.0
        right = bisect_left(self.points, (shape, 0.0))
        if right == 0 or right == len(self.points):
            return self.points[min(right, len(self.points) - 1)][1]
        (x0, r0), (x1, r1) = self.points[right - 1], self.points[right]
        part = (shape - x0) / (x1 - x0) if x1 > x0 else 0.5
        return math.exp((1 - part) * math.log(r0) + part * math.log(r1))

    def blurred(self, shape: float) -> float:
        """The same from points that need not agree: near ones weigh more."""
        weights = [1 / (0.1 + abs(shape - x)) for x, _ in self.points]
        logs = math.fsum(w * math.log(ratio) for w, (_, ratio) in zip(weights, self.points, strict=True))
        return math.exp(logs / math.fsum(weights))

    def timed(self, points: Mapping[float, float], *, first_s: float, shapes: Sequence[float]) -> KindHistory:
        """With what a rehearsal measured at some of these shapes."""
        merged = {**dict(self.points), **{x: _bounded(ratio) for x, ratio in points.items()}}
        known = [*shapes, *(self.spans or ())]
        return replace(
            self,
            points=tuple(sorted(merged.items())),
            spans=(min(known), max(known)),
            first_s=max(first_s, self.first_s),
        )

    def learn(self, seen: Mapping[float, tuple[float, float]]) -> KindHistory:
        """With one more run: shape -> (counted, actual) seconds of its packs."""
        seen = {x: pair for x, pair in seen.items() if min(pair) > 0}
        if not seen:
            return self
        weight = NEWEST if self.runs else 1.0
        expected = math.fsum(counted * self.ratio(x) for x, (counted, _) in seen.items())
        shift = (math.fsum(actual for _, actual in seen.values()) / expected) ** weight
        # What this run did not show moves with the rest.
        points = {x: _bounded(ratio * shift) for x, ratio in self.points if not any(abs(x - y) < BIN for y in seen)}
        for x, (counted, actual) in seen.items():
            points[x] = _bounded(self.ratio(x) ** (1 - weight) * (actual / counted) ** weight)
        return replace(self, points=tuple(sorted(points.items())), runs=self.runs + 1)


def _bounded(ratio: float) -> float:
    return min(max(ratio, RATIO_BOUNDS[0]), RATIO_BOUNDS[1])


@dataclass(frozen=True, kw_only=True)
class SweepHistory:
    """What was seen of one sweep."""

    early: float | None = None
    """Share of the estimated seconds that its trials took, where they could end early."""
    trial_s: float | None = None
    """Seconds of one trial of a job that states no cost."""
    computes: bool = False
    """Whether `trial_s` counts CPU-seconds on an uncontended core, because the trials do nothing but compute."""


@dataclass
class Tally:
    """What the packs of one run took, beside what was counted."""

    seen: dict[str, dict[float, tuple[float, float]]] = field(default_factory=dict)
    """kind -> shape -> (counted, actual) seconds, of packs whose trials ran to their horizon."""
    early_estimated_s: float = 0.0
    """Of packs whose trials might end early, what they would have taken without."""
    early_actual_s: float = 0.0

    def took(
        self, *, kind: str, shape: float, counted_s: float, estimated_s: float, actual_s: float, at_most: bool
    ) -> None:
        """One pack has ended."""
        if at_most:
            self.early_estimated_s += estimated_s
            self.early_actual_s += actual_s
        elif counted_s > 0:
            shapes = self.seen.setdefault(kind, {})
            place = round(shape / BIN) * BIN
            counted, actual = shapes.get(place, (0.0, 0.0))
            shapes[place] = (counted + counted_s, actual + actual_s)

    @property
    def counted_s(self) -> float:
        """Of all packs that ran to their horizon."""
        return math.fsum(counted for shapes in self.seen.values() for counted, _ in shapes.values())

    @property
    def actual_s(self) -> float:
        """Of the same packs."""
        return math.fsum(actual for shapes in self.seen.values() for _, actual in shapes.values())

    @property
    def early(self) -> float | None:
        """Share of the estimate that packs took which might end early; None where there were none."""
        return self.early_actual_s / self.early_estimated_s if self.early_estimated_s > 0 else None
