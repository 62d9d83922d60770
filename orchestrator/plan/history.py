"""Measured training times, remembered by kind of pack, by job and by sweep.

The ratio of measured to counted seconds depends on the size of a pack's tensor operations (its shape, see
`orchestrator.plan.calibration.Machine.shape`). It is stored at a few shapes for each kind of pack and interpolated.
Seconds are CPU-seconds on an uncontended core (`orchestrator.dispatch.worker.busy_clock`): the load of other programs
is not a property of a pack (see `orchestrator.plan.rehearsal.slowdown`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.plan.pack import Pack

SHAPE_BIN = 0.25
"""Packs whose shapes are rounded to the same multiple of this are stored as one point."""
SHAPE_MARGIN = 1.5
"""How far beyond the measured shapes a kind counts as known: measuring changes the packs of a plan slightly."""
NEWEST = 0.5
"""Weight of the newest run in an exponential average. The first run replaces the rehearsal."""
FULL_WEIGHT = 100
"""Trials from which on a run counts fully for the time to record."""
RATIO_BOUNDS = (0.02, 50.0)
"""Bounds of the ratio of measured to counted seconds: values beyond them are measurement errors."""


def bounded(ratio: float) -> float:
    """The ratio, limited to `RATIO_BOUNDS`."""
    return min(max(ratio, RATIO_BOUNDS[0]), RATIO_BOUNDS[1])


def updated(ratio: float, measured: float, *, runs: int) -> float:
    """The geometric average of a ratio learnt from `runs` runs and the one that the newest run measured."""
    weight = NEWEST if runs else 1.0
    return bounded(ratio ** (1 - weight) * measured**weight)


def recorded(ratio: float | None, measured: float, *, trials: int) -> float:
    """The ratio of recording learnt from earlier runs and the one that a run of so many trials measured.

    The first write and the last one take a time of their own: a run of few trials weighs little.
    """
    weight = (1.0 if ratio is None else NEWEST) * min(1.0, trials / FULL_WEIGHT)
    return bounded((1.0 if ratio is None else ratio) ** (1 - weight) * measured**weight)


def average(old: float | None, new: float | None) -> float | None:
    """The exponential average of an old and a new value, where both are known."""
    if old is None or new is None:
        return old if new is None else new
    return (1 - NEWEST) * old + NEWEST * new


@dataclass(frozen=True, kw_only=True)
class KindHistory:
    """Measurements of one kind of pack."""

    points: tuple[tuple[float, float], ...] = ()
    """(shape, ratio of measured to counted seconds), by increasing shape."""
    spans: tuple[float, float] | None = None
    """The smallest and the largest shape that rehearsals represent (a rehearsal times a sample of the packs)."""
    runs: int = 0
    """Number of runs; 0 after a rehearsal alone."""
    first_s: float = 0.0
    """Additional seconds of a worker's first pack: reading data, first use of the libraries."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> KindHistory:
        """The inverse of `dataclasses.asdict` followed by JSON."""
        points = tuple((float(x), float(ratio)) for x, ratio in data["points"])
        spans = data["spans"] and (float(data["spans"][0]), float(data["spans"][1]))
        return cls(points=points, spans=spans, runs=int(data["runs"]), first_s=float(data["first_s"]))

    def knows(self, shape: float) -> bool:
        """Whether packs of about this shape were measured or represented by measured ones."""
        shapes = [x for x, _ in self.points] + list(self.spans or ())
        return bool(shapes) and min(shapes) - SHAPE_MARGIN <= shape <= max(shapes) + SHAPE_MARGIN

    def ratio(self, shape: float) -> float:
        """Log-linear interpolation between the points, constant beyond them; 1 without points."""
        if not self.points:
            return 1.0
        right = bisect_left(self.points, (shape, 0.0))
        if right == 0 or right == len(self.points):
            return self.points[min(right, len(self.points) - 1)][1]
        (x0, r0), (x1, r1) = self.points[right - 1], self.points[right]
        part = (shape - x0) / (x1 - x0) if x1 > x0 else 0.5
        return math.exp((1 - part) * math.log(r0) + part * math.log(r1))

    def smoothed_ratio(self, shape: float) -> float:
        """Inverse-distance weighting of the logarithms, for points of several kinds that may disagree."""
        weights = [1 / (0.1 + abs(shape - x)) for x, _ in self.points]
        logs = math.fsum(w * math.log(ratio) for w, (_, ratio) in zip(weights, self.points, strict=True))
        return math.exp(logs / math.fsum(weights))

    def with_rehearsal(self, points: Mapping[float, float], *, first_s: float, shapes: Sequence[float]) -> KindHistory:
        """With the ratios that a rehearsal measured at some of the shapes it represents."""
        merged = {**dict(self.points), **{x: bounded(ratio) for x, ratio in points.items()}}
        known = [*shapes, *(self.spans or ())]
        spans, first_s = (min(known), max(known)), max(first_s, self.first_s)
        return replace(self, points=tuple(sorted(merged.items())), spans=spans, first_s=first_s)

    def with_run(self, times: Mapping[float, tuple[float, float]]) -> KindHistory:
        """With one more run: shape -> (counted, measured) seconds of its packs."""
        times = {x: pair for x, pair in times.items() if min(pair) > 0}
        if not times:
            return self
        expected = math.fsum(counted * self.ratio(x) for x, (counted, _) in times.items())
        shift = math.fsum(measured for _, measured in times.values()) / expected
        # Shapes that this run did not measure change by the same factor as the others.
        points = {
            x: updated(ratio, ratio * shift, runs=self.runs)
            for x, ratio in self.points
            if not any(abs(x - y) < SHAPE_BIN for y in times)
        }
        points |= {
            x: updated(self.ratio(x), measured / counted, runs=self.runs) for x, (counted, measured) in times.items()
        }
        return replace(self, points=tuple(sorted(points.items())), runs=self.runs + 1)


@dataclass(frozen=True, kw_only=True)
class JobHistory:
    """Measurements of a job; empty for a job that has never run here."""

    ratio: float = 1.0
    """Measured over counted training seconds, for kinds of packs that were never timed."""
    early: float | None = None
    """Share of the estimated seconds that packs took whose trials could end early."""
    trial_s: float | None = None
    """Training seconds of one trial: the estimate for a job that states no cost."""
    record_s: float | None = None
    """Seconds of the driver to record one trial, as earlier versions measured them; used without `record_ratio`."""
    record_ratio: float | None = None
    """Measured over counted seconds of the driver to record trials and their rows."""
    runs: int = 0


@dataclass(frozen=True, kw_only=True)
class SweepHistory:
    """Measurements of one sweep."""

    early: float | None = None
    """As in `JobHistory`."""
    trial_s: float | None = None
    """As in `JobHistory`."""
    computes: bool = False
    """Whether `trial_s` counts CPU-seconds on an uncontended core, because the trials do nothing but compute."""


@dataclass
class Tally:
    """Counted and measured seconds of the packs that ended in one run."""

    times: dict[str, dict[float, tuple[float, float]]] = field(default_factory=dict)
    """kind -> shape -> (counted, measured) seconds, of packs whose trials ran to their horizon."""
    trials: int = 0
    """Trials in all packs."""
    early_estimated_s: float = 0.0
    """The estimate for the packs whose trials could end early, as if none had."""
    early_measured_s: float = 0.0
    record_counted_s: float = 0.0
    """Counted seconds of the driver to record these trials."""

    def add(self, pack: Pack, measured_s: float, *, record_s: float = 0.0) -> None:
        """Count one pack that has ended; `record_s`: counted seconds to record it."""
        self.trials += len(pack.trials)
        self.record_counted_s += record_s
        if pack.at_most:
            self.early_estimated_s += pack.seconds
            self.early_measured_s += measured_s
        elif pack.counted_s > 0:
            shapes = self.times.setdefault(pack.kind, {})
            place = round(pack.shape / SHAPE_BIN) * SHAPE_BIN
            counted, measured = shapes.get(place, (0.0, 0.0))
            shapes[place] = (counted + pack.counted_s, measured + measured_s)

    @property
    def ratio(self) -> float | None:
        """Measured over counted seconds of the packs that ran to their horizon; None if there were none."""
        pairs = [pair for shapes in self.times.values() for pair in shapes.values()]
        measured_s = math.fsum(measured for _, measured in pairs)
        return measured_s / math.fsum(counted for counted, _ in pairs) if measured_s > 0 else None

    @property
    def early(self) -> float | None:
        """Share of the estimate taken by the packs whose trials could end early; None if there were none."""
        return self.early_measured_s / self.early_estimated_s if self.early_estimated_s > 0 else None
